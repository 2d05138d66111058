// How linear's work is dealt out, and what a warp reads of it: segments of stages (fused/layout.py), and their records.
//
// All the streaming goes through here, whatever the layout. Columns are counted in *halves* of a stage, 64 of them,
// because a row may end in the middle of one.
#pragma once
#include "types.cuh"

constexpr int TILES = ceil_div(TOKENS, 8);     // groups of 8 tokens: the n of the matrix instruction
constexpr int TILE = TOKENS < 8 ? TOKENS : 8;  // tokens of a group

#include "activations.cuh"
#include "ring.cuh"
#include "row_scale.cuh"

constexpr int STRIP = TILE_ROWS;
constexpr int HALF_COLS = STAGE_COLS / 2, HALF_BYTES = STAGE_BYTES / 2;
constexpr int SEGMENT_HALVES = SEGMENT_COLS / HALF_COLS, SPAN_HALVES = SPAN_COLS / HALF_COLS;
constexpr int SEGMENT_STAGES = SEGMENT_HALVES / 2, SPAN_SEGMENTS = SPAN_COLS / SEGMENT_COLS;
constexpr int SPANS = CONSUMERS / SPAN_SEGMENTS;    // in a round
constexpr int LINE = 128;                           // bytes of a cache line
constexpr int SLOT_BYTES = 2 * WARP * 16;           // a record of up to 244 exceptions (3 %); longer ones stay in memory

// Where in its share of the matrix a warp is. Spans are counted within blockIdx.y's columns.
struct Position {
    int strip, span;

    __device__ __forceinline__ void advance(int by, int spans) {
        span += by;
        while (span >= spans) span -= spans, strip += gridDim.x;
    }
};

struct Problem {
    const u8* weights;   // of the first stage of this slice
    const int* places;   // of the first record of this slice
    const u8* records;
    Activations x;       // of this slice
    int tokens, strips, row_halves, row_segments, unit;  // of the whole matrix,
    int halves, spans, rounds;                           // of this slice
};

// A warp's weights, segment after segment, each SEGMENT_STAGES stages, the last of them empty if it is short.
struct Feed {
    Ring<STAGES, STAGE_BYTES> ring;
    const u8* from;
    int left, stage = 0, segment, lane;
    Position place;

    __device__ __forceinline__ Feed(const Problem& p, u8* stages, Position place, int segment, int lane)
        : ring(stages, lane), segment(segment), lane(lane), place(place) {
        aim(p);
        for (int i = 0; i < STAGES - 1; i++) fetch(p);
    }
    __device__ __forceinline__ void aim(const Problem& p) {
        const int half = place.span * SPAN_HALVES + segment * SEGMENT_HALVES;
        left = place.strip < p.strips ? min(p.halves - half, SEGMENT_HALVES) * HALF_BYTES : 0;
        from = p.weights + ((long long)place.strip * p.row_halves + half) * HALF_BYTES + lane * 16;
    }
    __device__ __forceinline__ void fetch(const Problem& p) {
        ring.fill(from, left, lane);
        from += STAGE_BYTES;
        left -= STAGE_BYTES;
        if (++stage == SEGMENT_STAGES) {
            stage = 0;
            place.advance(SPANS, p.spans);
            aim(p);
        }
    }
};

// A segment's record: asked for when its weights are, read after them.
struct Record {
    u8* slot;
    int2 place;  // of the next record, in units of 16 bytes

    __device__ __forceinline__ void locate(const Problem& p, Position at, int segment) {
        const int k = at.span * SPAN_SEGMENTS + segment;
        const int* entry = p.places + (long long)at.strip * p.row_segments + k;
        place = at.strip < p.strips && k * SEGMENT_HALVES < p.halves ? make_int2(__ldg(entry), __ldg(entry + 1)) : make_int2(0, 0);
    }
    // Begin to copy it; belongs to the group that is committed next. Returns where it will be.
    __device__ __forceinline__ const u8* ask(const Problem& p, int lane) {
        const int size = place.y - place.x;
        const u8* from = p.records + (long long)place.x * ALIGN;
        if (size * ALIGN > SLOT_BYTES) {
            for (int at = lane * LINE; at < size * ALIGN; at += WARP * LINE) prefetch(from + at);
            return from;
        }
        const u32 to = shared_address(slot);
        if (lane < size) copy_async_16(to + lane * 16, from + lane * 16);
        if (lane + WARP < size) copy_async_16(to + (lane + WARP) * 16, from + (lane + WARP) * 16);
        return slot;
    }
};
