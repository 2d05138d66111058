// The rings through which the warps of tile_linear hand on their work, all in shared memory.
//
//   stages       STAGES areas per strip: a compressed stage, the segment's record, a note of what they are
//   weights      A_SLOTS steps of STEP_HALVES operand tiles of 64 columns
//   activations  X_SLOTS steps
//
// Every ring has a barrier `full` and a barrier `empty` per slot. A row with an odd number of halves has one more in the
// rings of operands, which is zero.
#pragma once
#include "mbarrier.cuh"
#include "stage.cuh"
#include "tile_work.cuh"

constexpr int HALF_BYTES = STAGE_BYTES / 2;     // of the rows of a strip: 16 x 64
constexpr int PARTS = DECODERS / STRIPS;        // warps that take turns at the stages of a strip
constexpr int STAGE_STEPS = 2 / STEP_HALVES;    // of a stage
constexpr int STRIP_BYTES = TILE_ROWS * HALF_COLS * 2, TILE_BYTES = STRIPS * STRIP_BYTES, A_BYTES = STEP_HALVES * TILE_BYTES;
constexpr int X_TILE_BYTES = TOKENS * HALF_COLS * 2, X_BYTES = STEP_HALVES * X_TILE_BYTES;
// Warps that bring activations: one for what tile_arrange left, else one for so many tokens.
constexpr int FEEDER_TOKENS = 16, X_FEEDERS = ARRANGED ? 1 : TOKENS / FEEDER_TOKENS;
static_assert(PARTS * STRIPS == DECODERS, "decoders");
static_assert(PARTS * STAGE_STEPS <= A_SLOTS, "nobody takes two turns in one round of the ring");
// Copies may end in any order, and a barrier tells only whether a phase is even or odd: who waits for a slot to be filled
// must have seen it filled before.
static_assert(STAGES % PARTS == 0, "an area is always of the same part");
static_assert(SEGMENT_HALVES / 2 >= PARTS, "every warp finds the record in its first stage of a segment");

// An area. A record is as much as registers hold (`Patches`).
constexpr int RECORD_AT = STAGE_BYTES, RECORD_BYTES = RECORD_HEAD + KEPT * WARP * 4;
constexpr int NOTE_AT = RECORD_AT + RECORD_BYTES, AREA_BYTES = NOTE_AT + 16;
static_assert(STAGE_BYTES % 16 == 0 && RECORD_BYTES % 16 == 0, "bulk copies are of 16 bytes and multiples");
// A note: the stage's first half in its segment and whether it has the second, then the record's place.
constexpr u32 WHOLE = 0x10;

struct Barriers {
    u32 stage_full, stage_empty, a_full, a_empty, x_full, x_empty;

    __device__ __forceinline__ Barriers(u32 begin)
        : stage_full(begin), stage_empty(stage_full + STAGES * 8), a_full(stage_empty + STAGES * 8),
          a_empty(a_full + A_SLOTS * 8), x_full(a_empty + A_SLOTS * 8), x_empty(x_full + X_SLOTS * 8) {}
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < STAGES; i++) mbarrier_init(stage_full + i * 8, STRIPS), mbarrier_init(stage_empty + i * 8, STRIPS);
        for (int i = 0; i < A_SLOTS; i++) mbarrier_init(a_full + i * 8, STRIPS), mbarrier_init(a_empty + i * 8, CONSUMERS);
        for (int i = 0; i < X_SLOTS; i++) mbarrier_init(x_full + i * 8, X_FEEDERS), mbarrier_init(x_empty + i * 8, CONSUMERS);
        mbarrier_init_done();
    }
};

// Somebody's place in a ring, and whether this round is an odd one.
template <int SLOTS>
struct Turn {
    u32 number, parity = 0;
    __device__ __forceinline__ Turn(u32 number = 0) : number(number) {}
    __device__ __forceinline__ void advance(u32 slots = 1) {
        number += slots;
        if (number >= SLOTS) number -= SLOTS, parity ^= 1;
    }
};

struct Activations {
    const u16* of;  // [tokens] rows of `pitch` elements at multiples of 16 bytes, or tile_arrange's
    int tokens, cols, pitch;  // cols: a multiple of 8
};

struct Weights {
    const u8* stages;
    const int* places;
    const u8* records;
    int strips, halves, token_tiles;  // strips of the matrix, halves of a row
    Split split;

    // Before `unit`, if all begins at unit 0.
    __device__ __forceinline__ int stages_before(int unit) const {
        return unit / split.segments * ceil_div(halves, 2) + unit % split.segments * (SEGMENT_HALVES / 2);
    }
};
