// How linear's work is dealt out, and what a warp reads of it: segments of stages (fused/layout.py), and their records.
//
// All the streaming goes through here, whatever the layout.
#pragma once
#include "types.cuh"

constexpr int TILES = ceil_div(TOKENS, 8);     // groups of 8 tokens: the n of the matrix instruction
constexpr int TILE = TOKENS < 8 ? TOKENS : 8;  // tokens of a group

#include "activations.cuh"
#include "ptx.cuh"
#include "row_scale.cuh"

constexpr int STRIP = TILE_ROWS;
constexpr int SPAN_HALVES = SPAN_COLS / HALF_COLS;
constexpr int STRIP_BYTES = X_PITCH / HALF_COLS * HALF_BYTES;
constexpr int SPAN_SEGMENTS = SPAN_COLS / SEGMENT_COLS;
constexpr int SPANS = CONSUMERS / SPAN_SEGMENTS;    // in a round
constexpr int LINE = 128;                           // bytes of a cache line

constexpr int CHAINS = 2;                           // of matrix instructions, each waiting for the one before

// Every segment is whole or empty: no part of one needs a check of its own.
constexpr bool WHOLE = X_PITCH % SEGMENT_COLS == 0;
static_assert(!WARPGROUPS || (TOKENS == 16 && SLICE == 1 && BAND == 1 && CONSUMERS % (4 * SPAN_SEGMENTS) == 0),
              "warpgroups: 16 tokens, slices of one span, four strips of the same segment");
static_assert(SEGMENT_STAGES % STAGES == 0, "the stages of every segment lie at the same places of a ring");

// Sums of neighbouring tokens, read and written at once.
template <int N>
struct alignas(N * sizeof(float)) Floats {
    float value[N];
    static __device__ __forceinline__ Floats at(const float* from) { return *(const Floats*)from; }
    __device__ __forceinline__ void store(float* to) const { *(Floats*)to = *this; }
};

// Where the sum of a row and token is among a segment's: tokens side by side, the eights of neighbouring rows exchanged
// so that whoever has two or four tokens of eight or four rows finds them in different banks.
__device__ __forceinline__ constexpr int sum_at(int row, int token) {
    return row * TOKENS + (TILES > 1 ? token ^ row * TOKENS / 32 * 8 % TOKENS : token);
}

// A streaming warp's part of a round: one segment of one of its SPANS, and the place of its sums. Four warps that multiply
// together (WARPGROUPS) have the same segment of four strips.
__device__ __forceinline__ constexpr int segment_of(int warp) { return (WARPGROUPS ? warp / 4 : warp) % SPAN_SEGMENTS; }
__device__ __forceinline__ constexpr int span_of(int warp) {
    return WARPGROUPS ? warp % 4 + warp / (4 * SPAN_SEGMENTS) * 4 : warp / SPAN_SEGMENTS;
}
__device__ __forceinline__ constexpr int place_of(int warp) {
    return WARPGROUPS ? span_of(warp) * SPAN_SEGMENTS + segment_of(warp) : warp;
}

// Where in its share of the matrix a warp is. Spans are counted within blockIdx.y's columns; a *band* is the BAND
// strips, one below the other, that a warp multiplies at a time: what it reads of the activations serves all of them.
struct Position {
    int band, span;

    // By up to `spans`, those of a row.
    __device__ __forceinline__ void advance(int by, int spans) {
        span += by;
        if (span >= spans) span -= spans, band += gridDim.x;
    }
};

struct Problem {
    const u8* weights;   // of the first stage of this slice
    const int* places;   // of the first record of this slice
    const u8* records;
    Activations x;       // of this slice
    int tokens, strips, bands, row_halves, row_segments, unit;  // of the whole matrix,
    int halves, spans, rounds;                           // of this slice
    int bands_on, spans_on;                              // from one round to the next

    // How many halves there are from a segment's first on; more than SEGMENT_HALVES, if the row goes on.
    __device__ __forceinline__ int from(Position at, int segment) const {
        return at.band < bands ? halves_from(at, segment) : 0;
    }
    // Counted whether or not there is such a band.
    __device__ __forceinline__ int halves_from(Position at, int segment) const {
        return halves - at.span * SPAN_HALVES - segment * SEGMENT_HALVES;
    }
    // The first of a position's strips, and how many there are; the others have no weights and no records.
    __device__ __forceinline__ int strip(Position at) const { return at.band * BAND; }
    __device__ __forceinline__ int strips_of(Position at) const { return BAND > 1 ? min(strips - strip(at), BAND) : 1; }
    __device__ __forceinline__ void move(Position& at) const {
        at.band += bands_on;
        at.advance(spans_on, spans);
    }
};

// A band's segment in memory, as one lane of a warp copies it.
struct Source {
    static constexpr int COPIES = STAGE_BYTES / (WARP * 16), REST = STAGE_BYTES % (WARP * 16) / 16;  // lanes of the last
    // Copies have short constant offsets from the segment's middle; where registers are short, from its begin, or ptxas
    // spills (sm_100: the other way round).
    static constexpr bool CROWDED = CONSUMERS * BLOCKS_PER_SM > 16 && __CUDA_ARCH__ != 1000;
    static constexpr int MIDDLE = CROWDED ? 0 : SEGMENT_STAGES / 2 * STAGE_BYTES;
    const u8* from;   // this lane's first 16 bytes, MIDDLE on
    int left;         // bytes from there on, in every strip
    int strips;

    __device__ __forceinline__ Source(const Problem& p, Position at, int segment, int lane) {
        const int first = at.span * SPAN_HALVES + segment * SEGMENT_HALVES;
        from = p.weights + ((long long)p.strip(at) * p.row_halves + first) * HALF_BYTES + lane * 16 + MIDDLE;
        left = min(p.from(at, segment), SEGMENT_HALVES) * HALF_BYTES;
        if (!WHOLE) left -= lane * 16;
        strips = p.strips_of(at);
    }
    // Begin to copy a stage to the shared address `to`, this lane's; what the segment does not have is left out.
    __device__ __forceinline__ void copy(u32 to, int stage, int lane) const {
#pragma unroll
        for (int u = 0; u < BAND; u++)
#pragma unroll
            for (int i = 0; i < COPIES + (REST > 0); i++) {
                const int at = i * WARP * 16, before = stage * STAGE_BYTES + at;
                const bool here = left > (WHOLE ? 0 : before) && (i < COPIES || lane < REST) && (u == 0 || u < strips);
                copy_async_16_if(here, to + u * STAGE_BYTES + at, from + u * STRIP_BYTES + (before - MIDDLE));
            }
    }
};

// A warp's weights, stage after stage, on their way through its ring: STAGES - 1 of them, the one that is read in front.
//
// Memory answers after 600 to 900 cycles; to keep it busy a multiprocessor must have some 30 KB under way. Registers
// could hold that (a prototype did) but then not much else; shared memory has the room. Much more than that only makes
// everybody wait longer. A stage belongs to one warp, so nobody else ever waits for it. The ring comes round within a
// segment, so in a loop over its stages that is written out all addresses are constants.
struct Stream {
    u32 begin;  // shared address of this lane's first 16 bytes
    Source now, next;
    int lane;

    __device__ __forceinline__ Stream(const u8* ring, const Source& first, int lane)
        : begin(shared_address(ring) + lane * 16), now(first), next(first), lane(lane) {}
    // Ask for the first segment's stages, from FIRST to before END.
    template <int FIRST, int END = STAGES - 1>
    __device__ __forceinline__ void fill() {
#pragma unroll
        for (int stage = FIRST; stage < END; stage++) fetch(stage);
    }
    // Ask for a stage of `now` or, counting on, of `next`. All lanes have left the one that was in its place.
    __device__ __forceinline__ void fetch(int stage) {
        (stage < SEGMENT_STAGES ? now : next).copy(begin + stage % STAGES * BAND * STAGE_BYTES, stage % SEGMENT_STAGES, lane);
        copy_async_commit();
    }
    // Until the oldest stage is there.
    __device__ __forceinline__ void wait() const {
        copy_async_wait<STAGES - 2>();
        __syncwarp();
    }
};

// A segment's record: asked for when its weights are, read after them. Of one that is longer than its slot of SLOT_BYTES
// (fused/variant.py) the head comes, and the exceptions stay in memory; the slot's last 16 bytes then tell where.
struct Record {
    static constexpr int ROOM = SLOT_BYTES - 16;
    u8* slot;
    int2 place;  // of the next record, in units of 16 bytes

    // Of the band's strip `u`.
    __device__ __forceinline__ void locate(const Problem& p, Position at, int u, int segment) {
        const int* entry = p.places + (long long)(p.strip(at) + u) * p.row_segments + at.span * SPAN_SEGMENTS + segment;
        place = p.from(at, segment) > 0 && u < p.strips_of(at) ? make_int2(__ldg(entry), __ldg(entry + 1)) : make_int2(0, 0);
    }
    // Begin to copy it; belongs to the group that is committed next.
    __device__ __forceinline__ void ask(const Problem& p, int lane) {
        const int size = (place.y - place.x) * ALIGN;
        const u8* from = p.records + (long long)place.x * ALIGN + lane * 16;
        u32 to = shared_address(slot) + lane * 16;
#pragma unroll 1
        for (int left = min(size, ROOM) - lane * 16; left > 0; left -= WARP * 16) {
            copy_async_16(to, from);
            from += WARP * 16, to += WARP * 16;
        }
        if (size <= ROOM) return;
        if (lane == 0) *(int*)(slot + ROOM) = place.x;
#pragma unroll 1
        for (int at = lane * LINE; at < size; at += WARP * LINE) prefetch(p.records + (long long)place.x * ALIGN + at);
    }
    // Once it is there: how many exceptions the segment has, whether they are in the slot, and where if not.
    __device__ __forceinline__ int count() const { return ((const u16*)slot)[STRIP - 1]; }
    __device__ __forceinline__ bool whole() const { return RECORD_HEAD + count() * (int)sizeof(u32) <= ROOM; }
    __device__ __forceinline__ const u8* in_memory(const Problem& p) const {
        return p.records + (long long)*(const int*)(slot + ROOM) * ALIGN;
    }
};
