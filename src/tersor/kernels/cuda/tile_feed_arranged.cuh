// The warp of tile_linear that asks for activations which are operand tiles already (tile_arrange.cu), by bulk copies.
//
// For large tiles, where a kernel beforehand is little of the whole: one lane has time for everything.
#pragma once
#include "tile_feed.cuh"

// Of one warp, `feeder` 0. `x`: [token tiles][halves, rounded up to even][X_TILE_BYTES].
__device__ __forceinline__ void feed_activations(const Weights& w, const Activations& x, u32 operands, const Barriers& b,
                                                 int begin, int end, int feeder) {
    if (threadIdx.x % WARP) return;
    const int row_stages = ceil_div(w.halves, 2);
    Cursor at(w, begin, end, 0);
    Turn<X_SLOTS> turn;
    previous_done();
    let_next_begin();
    for (; at.left > 0; at.advance(w)) {
        const int first = at.segment * SEGMENT_HALVES / 2, steps = ceil_div(at.halves(w), 2) * STAGE_STEPS;
        const u8* from = (const u8*)x.of + ((long long)at.token_tile * row_stages + first) * (2 * X_TILE_BYTES);
#pragma unroll 1
        for (int step = 0; step < steps; step++, from += X_BYTES, turn.advance()) {
            const u32 full = b.x_full + turn.number * 8;
            mbarrier_wait(b.x_empty + turn.number * 8, turn.parity ^ 1);
            mbarrier_arrive_expect(full, X_BYTES);
            bulk_copy(operands + turn.number * X_BYTES, from, X_BYTES, full);
        }
    }
}
