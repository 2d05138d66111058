// The rings through which the warps of tile_linear and strip_linear hand on their work, all in shared memory.
//
//   stages       STAGES areas per strip: a compressed stage, the segment's record, a note of what they are
//   weights      A_SLOTS stages, two operand tiles of 64 columns each (strip_linear has one and no barriers for it)
//   activations  X_SLOTS steps of X_TILES such tiles
//
// Every ring has a barrier `full` and a barrier `empty` per slot. A row with an odd number of halves has one more in the
// rings of operands, which is zero.
#pragma once
#include "mbarrier.cuh"
#include "tile_patches.cuh"

constexpr int PARTS = DECODERS / STRIPS;        // warps that take turns at the stages of a strip
constexpr int X_BYTES = X_TILES * X_TILE_BYTES;
static_assert(PARTS * STRIPS == DECODERS, "decoders");
static_assert(PARTS <= A_SLOTS, "nobody takes two turns in one round of the ring");
// Copies may end in any order, and a barrier tells only whether a phase is even or odd: who waits for a slot to be filled
// must have seen it filled before.
static_assert(STAGES % PARTS == 0, "an area is always of the same part");

constexpr int RECORD_AT = STAGE_BYTES, NOTE_AT = RECORD_AT + RECORD_BYTES, AREA_BYTES = NOTE_AT + 16;  // of an area
static_assert(STAGE_BYTES % 16 == 0, "bulk copies are of 16 bytes and multiples");
// A note: the stage's first half in its segment, whether it has the second and whether the record is there; then the
// record's place.
constexpr u32 WHOLE = 0x10, FIRST = 0x20;

struct Barriers {
    u32 stage_full, stage_empty, a_full, a_empty, x_full, x_empty, landed;  // landed: [CONSUMERS]

    __device__ __forceinline__ Barriers(u32 begin)
        : stage_full(begin), stage_empty(stage_full + STAGES * 8), a_full(stage_empty + STAGES * 8),
          a_empty(a_full + A_SLOTS * 8), x_full(a_empty + A_SLOTS * 8), x_empty(x_full + X_SLOTS * 8),
          landed(x_empty + X_SLOTS * 8) {}
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < STAGES; i++) mbarrier_init(stage_full + i * 8, STRIPS), mbarrier_init(stage_empty + i * 8, STRIPS);
        for (int i = 0; i < A_SLOTS; i++) mbarrier_init(a_full + i * 8, STRIPS), mbarrier_init(a_empty + i * 8, CONSUMERS);
        for (int i = 0; i < X_SLOTS; i++) mbarrier_init(x_full + i * 8, 1), mbarrier_init(x_empty + i * 8, CONSUMERS);
        for (int i = 0; i < CONSUMERS; i++) mbarrier_init(landed + i * 8, 1);
        mbarrier_init_done();
    }
};
