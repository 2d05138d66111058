// The warps of tile_linear that bring activations as they are in memory to their places in operand tiles.
//
// For small tiles, where a kernel that does it beforehand (tile_arrange.cu) is mostly its launch. A warp has 16 tokens:
// in every load a lane has the same 8 columns of a step and the next token but one, so that a load reads all of two
// tokens' columns, and a quarter of a warp stores a token's 8 pieces of a half, which meet in no bank.
#pragma once
#include "tile_feed.cuh"

constexpr int LOADS = FEEDER_TOKENS / 2;
static_assert(STEP_HALVES == 2, "a step has the columns of a stage");

// Of warp `feeder` of X_FEEDERS. A step waits in registers until there is a slot for it.
__device__ __forceinline__ void feed_activations(const Weights& w, const Activations& x, u32 operands, const Barriers& b,
                                                 int begin, int end, int feeder) {
    const int lane = threadIdx.x % WARP, odd = lane / 16, half = lane / 8 % 2, piece = lane % 8;
    const int n = feeder * FEEDER_TOKENS + odd, column = lane_column(half, piece / 2) + piece % 2 * 8;
    const long long two_tokens = 2ll * x.pitch;
    operands += half * X_TILE_BYTES + n * HALF_COLS * 2 + ((piece ^ odd) << 4);
    Cursor at(w, begin, end, 0);
    Turn<X_SLOTS> turn;
    uint4 pieces[LOADS] = {};  // of tokens that there are not: anything, their sums are written nowhere
    previous_done();
    let_next_begin();
    for (; at.left > 0; at.advance(w)) {
        const int token = at.token_tile * TOKENS + n, tokens = x.tokens - token, steps = ceil_div(at.halves(w), 2);
        int left = x.cols - (at.segment * SEGMENT_COLS + column);
        const u16* from = x.of + (long long)token * x.pitch + at.segment * SEGMENT_COLS + column;
#pragma unroll 1
        for (int step = 0; step < steps; step++, from += STAGE_COLS, left -= STAGE_COLS, turn.advance()) {
            const u16* row = from;
            const int present = left > 0 ? tokens : 0;
#pragma unroll
            for (int k = 0; k < LOADS; k++) {
                load_16_if(2 * k < present, pieces[k], row);
                row += two_tokens;
                asm volatile("" : "+l"(row));  // or else there are eight of it in registers
            }
            if (left <= 0)
#pragma unroll
                for (uint4& none : pieces) none = make_uint4(0, 0, 0, 0);
            const u32 to = operands + turn.number * X_BYTES;
            mbarrier_wait(b.x_empty + turn.number * 8, turn.parity ^ 1);
#pragma unroll
            for (int k = 0; k < LOADS; k++) {
                const uint4 v = pieces[k];  // token n + 2 k: piece ^ (n + 2 k) % 8
                store_shared_16((to ^ 2 * k % 8 << 4) + 2 * k * HALF_COLS * 2, v.x, v.y, v.z, v.w);
            }
            shared_stores_done();
            __syncwarp();
            if (lane == 0) mbarrier_arrive(b.x_full + turn.number * 8);
        }
    }
}
