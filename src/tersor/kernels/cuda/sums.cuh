// Running sums: of a warp, and of an array by one block.
#pragma once
#include "ptx.cuh"

// Inclusive sum over the lanes up to this one.
__device__ __forceinline__ int running_sum(int v, int lane) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const int left = __shfl_up_sync(ALL_LANES, v, step);
        v += lane >= step ? left : 0;
    }
    return v;
}

// Counts at offsets[1], offsets[2], ... to offsets, by a block of BLOCK_WARPS warps, each of which takes a row of them;
// returns the sum. `size` says how much room a count takes.
template <int BLOCK_WARPS, typename Size>
__device__ __forceinline__ u64 add_up(u32* offsets, int count, Size size) {
    constexpr int ITEMS = 16;  // per lane, in flight at once
    __shared__ int sums[BLOCK_WARPS];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u64 carry = 0;
    for (long long first = 0; first < count; first += BLOCK_WARPS * WARP * ITEMS) {
        const long long begin = first + warp * WARP * ITEMS + lane;
        int ends[ITEMS], sum = 0;
#pragma unroll
        for (int k = 0; k < ITEMS; k++)
            ends[k] = begin + k * WARP < count ? (int)size(__ldcg(offsets + 1 + begin + k * WARP)) : 0;
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            ends[k] = sum + running_sum(ends[k], lane);
            sum = __shfl_sync(ALL_LANES, ends[k], WARP - 1);
        }
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        u64 before = carry;
        for (int other = 0; other < BLOCK_WARPS; other++) {
            before += other < warp ? sums[other] : 0;
            carry += sums[other];
        }
#pragma unroll
        for (int k = 0; k < ITEMS; k++)
            if (begin + k * WARP < count) offsets[1 + begin + k * WARP] = (u32)before + ends[k];
        __syncthreads();
    }
    return carry;
}
