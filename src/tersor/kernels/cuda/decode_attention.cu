// Attention of one new token over the filled part of a static cache (kernels/attention).
//
// A cluster of RANKS blocks works on one key/value head and the GROUP query heads that share it. Keys are dealt
// out in turns of KEYS to the warps of the whole cluster; a warp reads KEYS_AT_ONCE rows of the cache with one 16-byte
// load per lane, so LANES lanes share a key and each keeps its eight dimensions of q and of the result in
// registers. Every group of LANES lanes is a *stream* with its own running maximum and sum. Streams are merged
// in their order, first within a block, then over the cluster through distributed shared memory: no second
// launch, no workspace, the same bits every time.
//
// Compiled for HEAD_DIM, GROUP (query heads per key/value head) and RANKS.
#include "ptx.cuh"

constexpr int WARPS = 8, THREADS = WARPS * WARP;
constexpr int LANES = HEAD_DIM / 8, KEYS_AT_ONCE = WARP / LANES;
constexpr int TURNS = 4, KEYS = TURNS * KEYS_AT_ONCE;  // keys of a warp at a time
constexpr int STREAMS = WARPS * KEYS_AT_ONCE;
constexpr float NOTHING = -1e30f;  // a maximum of no keys; finite, so that differences of two are

struct Partial {  // of one stream or block, in shared memory
    float* most;   // [GROUP]
    float* total;  // [GROUP]
    float* sum;    // [GROUP][HEAD_DIM]
};
constexpr int PARTIAL = GROUP * (HEAD_DIM + 2);  // floats

__device__ __forceinline__ Partial partial_at(float* base, int index) {
    float* at = base + index * PARTIAL;
    return {at + GROUP * HEAD_DIM, at + GROUP * HEAD_DIM + GROUP, at};
}

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ void unpack(float (&to)[8], uint4 from) {
    const u32 pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) to[2 * i] = low(pairs[i]), to[2 * i + 1] = high(pairs[i]);
}

extern "C" __global__ void __cluster_dims__(RANKS, 1, 1) __launch_bounds__(THREADS)
decode_attention(const u16* __restrict__ q,     // [heads][HEAD_DIM] bfloat16
                 const u16* __restrict__ keys,  // [key/value heads][capacity][HEAD_DIM] bfloat16
                 const u16* __restrict__ values,
                 const long long* __restrict__ position,  // of the new token: keys 0 to position are attended to
                 u16* __restrict__ out,                   // [heads][HEAD_DIM] bfloat16
                 int capacity, float scale) {             // scale times log2(e)
    extern __shared__ __align__(16) float shared[];       // [STREAMS][PARTIAL], then the block's own
    const int rank = blockIdx.x % RANKS, head = blockIdx.x / RANKS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, part = lane % LANES, which = lane / LANES;
    let_next_begin();
    previous_done();
    const int filled = min((int)*position + 1, capacity);
    const long long first = (long long)head * capacity * HEAD_DIM + part * 8;
    keys += first, values += first;

    float query[GROUP][8], sum[GROUP][8] = {}, most[GROUP], total[GROUP] = {};
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        unpack(query[g], *(const uint4*)(q + (head * GROUP + g) * HEAD_DIM + part * 8));
        most[g] = NOTHING;
    }
#pragma unroll 1
    for (int begin = (rank * WARPS + warp) * KEYS; begin < filled; begin += RANKS * WARPS * KEYS) {
        uint4 k[TURNS], v[TURNS];
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const long long row = (long long)min(begin + i * KEYS_AT_ONCE + which, filled - 1) * HEAD_DIM;
            k[i] = *(const uint4*)(keys + row);
            v[i] = *(const uint4*)(values + row);
        }
        float score[TURNS][GROUP];
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            float key[8];
            unpack(key, k[i]);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float dot = 0;
#pragma unroll
                for (int d = 0; d < 8; d++) dot += query[g][d] * key[d];
#pragma unroll
                for (int mask = LANES / 2; mask; mask /= 2) dot += __shfl_xor_sync(ALL_LANES, dot, mask);
                score[i][g] = begin + i * KEYS_AT_ONCE + which < filled ? dot * scale : NOTHING;
            }
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float peak = most[g];
#pragma unroll
            for (int i = 0; i < TURNS; i++) peak = fmaxf(peak, score[i][g]);
            const float shrink = exp2f(most[g] - peak);
            most[g] = peak;
            total[g] *= shrink;
#pragma unroll
            for (int d = 0; d < 8; d++) sum[g][d] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            float value[8];
            unpack(value, v[i]);
            const bool there = begin + i * KEYS_AT_ONCE + which < filled;
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                const float weight = there ? exp2f(score[i][g] - most[g]) : 0.f;
                total[g] += weight;
#pragma unroll
                for (int d = 0; d < 8; d++) sum[g][d] += weight * value[d];
            }
        }
    }
    const Partial own = partial_at(shared, warp * KEYS_AT_ONCE + which);
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
#pragma unroll
        for (int d = 0; d < 8; d++) own.sum[g * HEAD_DIM + part * 8 + d] = sum[g][d];
        if (part == 0) own.most[g] = most[g], own.total[g] = total[g];
    }
    __syncthreads();
    // The block's streams become one, a thread per dimension of a head.
    const Partial block = partial_at(shared, STREAMS);
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
        const int g = i / HEAD_DIM;
        float peak = NOTHING, weights = 0, result = 0;
        for (int s = 0; s < STREAMS; s++) peak = fmaxf(peak, partial_at(shared, s).most[g]);
        for (int s = 0; s < STREAMS; s++) {
            const Partial stream = partial_at(shared, s);
            const float shrink = exp2f(stream.most[g] - peak);
            weights += stream.total[g] * shrink;
            result += stream.sum[i] * shrink;
        }
        block.sum[i] = result;
        if (i % HEAD_DIM == 0) block.most[g] = peak, block.total[g] = weights;
    }
    cluster_sync();
    // The blocks' become the result, each rank writing its share of it.
    for (int i = rank * THREADS + threadIdx.x; i < GROUP * HEAD_DIM; i += RANKS * THREADS) {
        const int g = i / HEAD_DIM;
        float peak = NOTHING, weights = 0, result = 0;
        for (int r = 0; r < RANKS; r++) peak = fmaxf(peak, load_of_rank(block.most + g, r));
        for (int r = 0; r < RANKS; r++) {
            const float shrink = exp2f(load_of_rank(block.most + g, r) - peak);
            weights += load_of_rank(block.total + g, r) * shrink;
            result += load_of_rank(block.sum + i, r) * shrink;
        }
        out[head * GROUP * HEAD_DIM + i] = to_bf16(result / weights);
    }
    cluster_sync();  // nobody leaves while others read its shared memory
}
