// The two warps of tile_linear and strip_linear that ask for compressed weights and for activations, by bulk copies.
//
// Bulk copies cost their thread a few instructions whatever their size, and the fence by which stores are shown to the
// tensor cores does not wait for them, as it does for cp.async of the same thread. Those of activations are told of the
// whole matrix: they leave the operand's swizzle, and zeros where it ends.
#pragma once
#include "tile_rings.cuh"

// A lane per strip. The record comes with each of the first PARTS stages of a segment, or of what the run has of it.
__device__ __forceinline__ void feed_weights(const Weights& w, u8* areas, const Barriers& b, int begin, int end) {
    const int lane = threadIdx.x % WARP;
    if (lane >= STRIPS) return;
    Cursor at(w, begin, end, lane);
    int2 place = at.place(w);
    Turn<STAGES> turn;
    while (at.left > 0) {
        const int count = at.stages(w), halves = at.halves(w);
        int half = at.first_half();
        const u8* stage = at.stored(w);
        const u8* record = w.records + (long long)place.x * ALIGN;
        const int record_bytes = min((place.y - place.x) * ALIGN, RECORD_BYTES), note = place.x;
        at.advance(w);
        place = at.place(w);  // asked for a segment ahead
#pragma unroll 1
        for (int i = 0; i < count; i++, half += 2, stage += STAGE_BYTES, turn.advance()) {
            u8* area = areas + (turn.number * STRIPS + lane) * AREA_BYTES;
            const u32 to = shared_address(area), full = b.stage_full + turn.number * 8;
            const bool whole = 2 * i + 1 < halves, first = i < PARTS;
            const int bytes = whole ? STAGE_BYTES : HALF_BYTES;
            mbarrier_wait(b.stage_empty + turn.number * 8, turn.parity ^ 1);
            *(uint2*)(area + NOTE_AT) = make_uint2(half | (whole ? WHOLE : 0) | (first ? FIRST : 0), note);
            mbarrier_arrive_expect(full, bytes + (first ? record_bytes : 0));
            bulk_copy(to, stage, bytes, full);
            if (first) bulk_copy(to + RECORD_AT, record, record_bytes, full);
        }
    }
}

// One lane has time for all activations.
__device__ __forceinline__ void feed_activations(const Weights& w, const TensorMap& x, u32 operands, const Barriers& b, int begin,
                                                 int end) {
    if (threadIdx.x % WARP) return;
    Cursor at(w, begin, end, 0);
    Turn<X_SLOTS> turn;
    static_assert(COPIES == 1, "a copy has all of a tile's tokens");
    previous_done();
    let_next_begin();
    for (; at.left > 0; at.advance(w)) {
        const int steps = at.stages(w) * (2 / X_TILES);
        int col = at.stage * STAGE_COLS;
#pragma unroll 1
        for (int step = 0; step < steps; step++, turn.advance()) {
            const u32 full = b.x_full + turn.number * 8;
            mbarrier_wait(b.x_empty + turn.number * 8, turn.parity ^ 1);
            mbarrier_arrive_expect(full, X_BYTES);
#pragma unroll
            for (int h = 0; h < X_TILES; h++, col += HALF_COLS)
                tensor_copy(operands + turn.number * X_BYTES + h * X_TILE_BYTES, x, at.token_tile * TOKENS, col, full);
        }
    }
}
