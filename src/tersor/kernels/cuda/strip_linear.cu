// y = x W^T (+ bias) for 256 tokens at a time on Hopper: every warp decodes the strip of W that it multiplies.
//
// As tile_linear.cu, with so many sums that there are no registers for warps that only decode. An instruction multiplies
// 256 tokens, as in cluster_linear.cu, but blocks work alone:
//
//   CONSUMERS   two warpgroups: while the tensor cores multiply a step of 64 columns, the warps that will wait for them
//               decode the next into the other of two operand tiles
//   FEEDERS     a warp that asks for compressed weights, and one for activations (tile_feed.cuh)
//
// What registers feeders do not need, consumers get. A warp writes to its rows of a tile when its own part of the product
// that read them is done, which needs no other warp: the tensor core of each reads its own sixteen.
#include "types.cuh"
constexpr int X_TILES = 1;  // of a step

#include "tile_feed.cuh"
#include "tile_sums.cuh"

static_assert(X_SLOTS >= 2, "the last two steps' activations make room for sums");
constexpr int FEEDERS = 4, THREADS = (CONSUMERS + FEEDERS) * WARP;  // registers are given out to warpgroups
constexpr int AREAS_AT = A_BYTES + X_SLOTS * X_BYTES, BARRIERS_AT = AREAS_AT + STAGES * STRIPS * AREA_BYTES;
static_assert(CONSUMERS == STRIPS && TILE_ROWS * 4 == 64, "a warp's rows of a product of 64 are a strip");

// From a strip's compressed stages to its rows in the two operand tiles, a tile at a time.
struct Decoder {
    const u8* areas;
    const u8* records;
    u32 full, rows;  // the ring's first barrier; the strip in the first tile
    int lane, first;
    bool whole;      // whether the stage has both halves
    Turn<STAGES> turn;
    Pieces pieces;
    Stage stage;
    Patches patches;
    u32 a[2][4][4];

    __device__ __forceinline__ Decoder(const Weights& w, const u8* areas, u32 operands, const Barriers& b, int strip, int lane)
        : areas(areas + strip * AREA_BYTES), records(w.records), full(b.stage_full), rows(operands + strip * STRIP_BYTES),
          lane(lane), pieces(lane) {}

    // The N-th tile of the next stage. Ends with a barrier of the warpgroup: all of its rows are there.
    template <int N>
    __device__ __forceinline__ void step() {
        const u8* area = areas + turn.number * (STRIPS * AREA_BYTES);
        const u32 filled = full + turn.number * 8;
        if (N == 0) {
            mbarrier_wait(filled, turn.parity);
            const uint2 note = *(const uint2*)(area + NOTE_AT);
            first = note.x & 0xf, whole = note.x & WHOLE;
            if (note.x & FIRST) {
                stage.begin_segment(area + RECORD_AT, lane / 4);
                patches.load(area + RECORD_AT, records + (long long)note.y * ALIGN, lane);
            }
            stage.open(area, lane, pieces.turned);
            stage.half_bf16(a[0], 0);
        }
        constexpr int LAST = SPREAD ? 0 : 1;  // when all that is left of the area is read
        if (N == LAST) {
            if (whole)
                stage.half_bf16(a[1], 1);
            else
                zero(a[1]);
            __syncwarp();
            if (lane == 0) mbarrier_arrive(filled + STAGES * 8);
        }
        if (N == 1) turn.advance();
        pieces.store_tile(rows, a, N);
        __syncwarp();  // the fillers are there before the exceptions
        patches.apply(rows, first / 2, N, lane);
        shared_stores_done();
        barrier_sync(2 + threadIdx.x / (4 * WARP), 4 * WARP);
    }
};

// Warpgroup `group`: known to be the same in all lanes, so that what it tells the tensor cores is reckoned once for a warp.
__device__ __forceinline__ void consume(const Weights& w, const Output& out, const Parts& parts, const u8* areas, u32 operands_a,
                                        u32 operands_x, const Barriers& b, const Run& run, int group) {
    const u32 a_tiles = descriptor(operands_a + group * A_BLOCK_BYTES), x_tiles = descriptor(operands_x);
    const bool leader = threadIdx.x % WARP == 0;
    Decoder decoder(w, areas, operands_a, b, threadIdx.x / WARP, threadIdx.x % WARP);
    Sums sums;
    Turn<X_SLOTS> turn;
    int unit = uniform(run.begin), left = uniform(run.end - run.begin);
    decoder.step<0>();
#pragma unroll 1
    while (unit < run.end) {
        const int stages = uniform(w.split.in_tile(unit, run.end));
        sums.clear();
        u32 before = 0, read = 0;  // the slots before
#pragma unroll 1
        for (int k = 0; k < stages; k++) {
            left--;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                mbarrier_wait(b.x_full + turn.number * 8, turn.parity);
                const u32 a = a_tiles + n * (NEXT_TILE >> 4), x = x_tiles + turn.number * (X_BYTES >> 4);
                wgmma_begin();
#pragma unroll
                for (int i = 0; i < 4; i++) sums.add(a + i * DESCRIPTOR_STEP, x + i * DESCRIPTOR_STEP);
                wgmma_commit();
                wgmma_wait<1>();  // the step before is done: its activations, and this warp's rows of its weights, are free
                // But the last two steps' activations give their place to sums before it is given back.
                if (leader && (n ? k + 1 < stages : k > 0)) mbarrier_arrive(b.x_empty + read * 8);
                before = read, read = turn.number;
                turn.advance();
                if (n == 0)
                    decoder.step<1>();
                else if (left > 0)
                    decoder.step<0>();
            }
        }
        wgmma_wait<0>();
        const Landing<AREAS_AT / (CONSUMERS * PART_BYTES)> landing(operands_a, b.landed);
        const auto quiet = [] { barrier_sync(1, CONSUMERS * WARP); };
        const Staging staging{operands_x + before * X_BYTES, (read - before) * X_BYTES};
        const bool head = unit % w.split.stages == 0;
        const int2 tile = w.split.place(unit);
        unit += stages;
        sums.hand_over(out, w.split, run, parts, landing, quiet, staging, tile, stages, head);
        sums.settle_part(run, parts, !head);
        sums.settle_stores();
        if (leader) mbarrier_arrive(b.x_empty + before * 8), mbarrier_arrive(b.x_empty + read * 8);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
strip_linear(const u8* __restrict__ weights, const int* __restrict__ places, const u8* __restrict__ records,
             const __grid_constant__ TensorMap x,  // [tokens][cols] bfloat16, TOKENS x HALF_COLS at a time
             const __grid_constant__ TensorMap y,  // [tokens][rows] bfloat16, TOKENS x 64 at a time
             const u16* __restrict__ bias, // [rows] bfloat16 or null
             float4* __restrict__ partial, // [blocks][QUADS], where tiles are cut
             u32* __restrict__ flags,      // [blocks][CONSUMERS], zero
             int rows, int tokens, int halves, int chunk, int period,
             int exponent) {               // sums are multiplied by 2^exponent
    extern __shared__ __align__(1024) u8 unaligned[];
    u8* shared = unaligned + (-shared_address(unaligned) & (STRIP_BYTES - 1));  // swizzle and patches go by addresses
    const u32 base = shared_address(shared), operands_x = base + A_BYTES;
    const int warp = uniform(threadIdx.x / WARP);  // the compiler now knows that a warp has one trade
    const Barriers barriers(base + BARRIERS_AT);
    const Weights w(weights, places, records, rows, tokens, halves, chunk);
    __shared__ Run run;
    if (threadIdx.x == 0) run.find(w.split, period), prefetch(y);
    if (threadIdx.x == WARP) barriers.init(), prefetch(x);
    __syncthreads();
    if (warp < CONSUMERS) {
        more_registers<CONSUMER_REGISTERS>();
        const Output out{&y, bias, rows, power_of_two(exponent)};
        consume(w, out, {partial, flags}, shared + AREAS_AT, base, operands_x, barriers, run, warp / 4);
    } else {
        fewer_registers<FEEDER_REGISTERS>();
        if (warp == CONSUMERS) feed_weights(w, shared + AREAS_AT, barriers, run.begin, run.end);
        if (warp == CONSUMERS + 1) feed_activations(w, x, operands_x, barriers, run.begin, run.end);
    }
}
