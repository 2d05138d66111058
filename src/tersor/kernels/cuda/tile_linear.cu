// y = x W^T (+ bias) for many tokens on Hopper: W is decoded into shared memory, where the tensor cores find it.
//
// A block of threads works through its units (tile_work.cuh) in steps of 128 columns. Its warps have three trades:
//
//   CONSUMERS   one or two warpgroups: wgmma on 128 rows x TOKENS tokens, sums in registers
//   DECODERS    8 or 16 warps: a strip of 16 rows each (tile_decode.cuh), or two warps in turns
//   FEEDERS     a warp that asks for compressed weights, and one for activations (tile_feed.cuh)
//
// They meet in three rings (tile_rings.cuh). Decoding costs the same whatever TOKENS is, and happens once for all.
#include "types.cuh"
constexpr int X_TILES = 2;  // of a step

#include "tile_decode.cuh"
#include "tile_feed.cuh"
#include "tile_sums.cuh"

constexpr int FEEDERS = 2;
constexpr int THREADS = (CONSUMERS + DECODERS + FEEDERS) * WARP;
// Steps under way while a consumer waits for the next. With few tokens a step is done before there is a next.
constexpr int BEHIND = TOKENS <= 64 ? 0 : 1;
static_assert(A_SLOTS > BEHIND && X_SLOTS > BEHIND, "a step is given back when the next one is under way");
constexpr int AREAS_AT = A_SLOTS * A_BYTES + X_SLOTS * X_BYTES;
constexpr int BARRIERS_AT = AREAS_AT + STAGES * STRIPS * AREA_BYTES;

// Warpgroup `group`: known to be the same in all lanes, so that what it tells the tensor cores is reckoned once for a warp.
__device__ __forceinline__ void consume(const Weights& w, const Output& out, const Parts& parts, u32 operands_a, u32 operands_x,
                                        const Barriers& b, const Run& run, int group) {
    const u32 a_tiles = descriptor(operands_a + group * BLOCKS_OF_64 * A_BLOCK_BYTES), x_tiles = descriptor(operands_x);
    const bool leader = threadIdx.x % WARP == 0;
    Sums sums;
    Turn<A_SLOTS> turn_a;
    Turn<X_SLOTS> turn_x;
    int unit = uniform(run.begin);
#pragma unroll 1
    while (unit < run.end) {
        const int steps = uniform(w.split.in_tile(unit, run.end));
        sums.clear();
        u32 read_a = 0, read_x = 0;  // the step that is done
#pragma unroll 1
        for (int k = 0; k < steps; k++) {
            if (!BEHIND) read_a = turn_a.number, read_x = turn_x.number;
            mbarrier_wait(b.a_full + turn_a.number * 8, turn_a.parity);
            mbarrier_wait(b.x_full + turn_x.number * 8, turn_x.parity);
            const u32 a = a_tiles + turn_a.number * (A_BYTES >> 4), x = x_tiles + turn_x.number * (X_BYTES >> 4);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < 8; i++)
                sums.add(a + (i / 4 * NEXT_TILE >> 4) + i % 4 * DESCRIPTOR_STEP,
                         x + (i / 4 * X_TILE_BYTES >> 4) + i % 4 * DESCRIPTOR_STEP);
            wgmma_commit();
            wgmma_wait<BEHIND>();
            // The last step's activations give their place to sums before it is given back.
            if (leader && k >= BEHIND && k + 1 - BEHIND < steps)
                mbarrier_arrive(b.a_empty + read_a * 8), mbarrier_arrive(b.x_empty + read_x * 8);
            if (BEHIND) read_a = turn_a.number, read_x = turn_x.number;
            turn_a.advance();
            turn_x.advance();
        }
        wgmma_wait<0>();
        if (leader) mbarrier_arrive(b.a_empty + read_a * 8);
        const Landing<AREAS_AT / (CONSUMERS * PART_BYTES)> landing(operands_a, b.landed);
        const auto quiet = [] { barrier_sync(1, CONSUMERS * WARP); };
        const Staging staging{operands_x + read_x * X_BYTES, X_TILE_BYTES};
        const bool head = unit % w.split.stages == 0;
        const int2 tile = w.split.place(unit);
        unit += steps;
        sums.hand_over(out, w.split, run, parts, landing, quiet, staging, tile, steps, head);
        sums.settle_part(run, parts, !head);
        sums.settle_stores();
        if (leader) mbarrier_arrive(b.x_empty + read_x * 8);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
tile_linear(const u8* __restrict__ weights, const int* __restrict__ places, const u8* __restrict__ records,
            const __grid_constant__ TensorMap x,  // [tokens][cols] bfloat16, TOKENS x HALF_COLS at a time
            const __grid_constant__ TensorMap y,  // [tokens][rows] bfloat16, TOKENS x 64 at a time
            const u16* __restrict__ bias, // [rows] bfloat16 or null
            float4* __restrict__ partial, // [blocks][QUADS], where tiles are cut
            u32* __restrict__ flags,      // [blocks][CONSUMERS], zero
            int rows, int tokens, int halves, int chunk, int period,
            int exponent) {               // sums are multiplied by 2^exponent
    extern __shared__ __align__(1024) u8 unaligned[];
    u8* shared = unaligned + (-shared_address(unaligned) & (STRIP_BYTES - 1));  // swizzle and patches go by addresses
    const u32 base = shared_address(shared);
    const int warp = uniform(threadIdx.x / WARP);  // the compiler now knows that a warp has one trade
    u32 barriers_at = base + BARRIERS_AT;
    asm volatile("" : "+r"(barriers_at));  // kept, not reckoned again for every wait
    const Barriers barriers(barriers_at);
    const u32 operands_x = base + A_SLOTS * A_BYTES;
    const Weights w(weights, places, records, rows, tokens, halves, chunk);
    const Parts parts{partial, flags};
    __shared__ Run run;
    if (threadIdx.x == 0) run.find(w.split, period), prefetch(y);
    if (threadIdx.x == WARP) barriers.init(), prefetch(x);
    __syncthreads();
    if (warp < CONSUMERS) {
        const Output out{&y, bias, rows, power_of_two(exponent)};
        consume(w, out, parts, base, operands_x, barriers, run, GROUPS == 1 ? 0 : warp / 4);
    } else if (warp < CONSUMERS + DECODERS) {
        decode_tiles(w, shared + AREAS_AT, base, barriers, warp - CONSUMERS, run.end - run.begin);
    } else {
        const int feeder = warp - CONSUMERS - DECODERS;
        if (feeder == 0)
            feed_weights(w, shared + AREAS_AT, barriers, run.begin, run.end);
        else if (feeder == 1)
            feed_activations(w, x, operands_x, barriers, run.begin, run.end);
    }
}
