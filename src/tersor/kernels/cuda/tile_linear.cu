// y = x W^T (+ bias) for many tokens on Hopper: W is decoded into shared memory, where the tensor cores find it.
//
// A block of threads works through its units (tile_work.cuh) in steps of 64 columns. Its warps have two trades:
//
//   CONSUMERS   one or two warpgroups: wgmma on 128 rows x TOKENS tokens, sums in registers
//   DECODERS    8 or 16 warps: a strip of 16 rows each (tile_decode.cuh), or two warps in turns; the first strip's
//               also ask for the activations, which are in the form of operands already (tile_arrange.cu)
//
// They meet in two rings of operand tiles, A_SLOTS of weights and X_SLOTS of activations, by the barriers of
// mbarrier.cuh. There is no warp of its own for the activations because registers are given out to whole
// warpgroups: with 512 threads and setmaxnreg there are enough for the sums of 256 tokens, with 544 there are not.
// Decoding costs the same whatever TOKENS is, and happens once for all of them.
#include "tile_decode.cuh"
#include "wgmma.cuh"

constexpr int THREADS = (CONSUMERS + DECODERS) * WARP;
constexpr int STAGES_AT = A_SLOTS * A_BYTES + X_SLOTS * X_BYTES;
constexpr int RECORDS_AT = STAGES_AT + DECODERS * STAGES * STAGE_BYTES;
constexpr int BARRIERS_AT = RECORDS_AT + DECODERS * SLOT_BYTES;

// A warpgroup.
__device__ __forceinline__ void consume(const Weights& w, const Output& out, float4* partial, u32 operands_a, u32 operands_x,
                                        const Barriers& b, int begin, int end) {
    const int group = threadIdx.x / 128;
    const u64 a_tiles = descriptor(operands_a + group * BLOCKS_OF_64 * 64 * ROW_BYTES), x_tiles = descriptor(operands_x);
    const bool leader = threadIdx.x % WARP == 0;
    float sums[BLOCKS_OF_64][WIDTHS][WIDTH / 2];
    u32 step = 0;
    int unit = begin;
#pragma unroll 1
    while (unit < end) {
        const int tile = unit / w.split.segments, first = unit % w.split.segments;
        const int last = min(w.split.segments, first + end - unit);
        const int steps = min(w.halves, last * SEGMENT_HALVES) - first * SEGMENT_HALVES;
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) sums[m][i / (WIDTH / 2)][i % (WIDTH / 2)] = 0;
        u32 held = 0;  // of the step before, which may still be read
#pragma unroll 1
        for (int k = 0; k < steps; k++, step++) {
            const u32 number_a = step % A_SLOTS, number_x = step % X_SLOTS;
            mbarrier_wait(b.a_full + number_a * 8, step / A_SLOTS & 1);
            mbarrier_wait(b.x_full + number_x * 8, step / X_SLOTS & 1);
            const u64 a = a_tiles + number_a * (A_BYTES >> 4), x = x_tiles + number_x * (X_BYTES >> 4);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < HALF_COLS / 16; i++)
#pragma unroll
                for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
                    for (int n = 0; n < WIDTHS; n++)
                        wgmma(sums[m][n], a + m * (64 * ROW_BYTES >> 4) + i * DESCRIPTOR_STEP,
                              x + n * (WIDTH * ROW_BYTES >> 4) + i * DESCRIPTOR_STEP);
            wgmma_commit();
            wgmma_wait<1>();
            if (k > 0 && leader) mbarrier_arrive(b.empty + held);
            held = number_a * 8;
        }
        wgmma_wait<0>();
        if (leader) mbarrier_arrive(b.empty + held);
        const bool whole = first == 0 && last == w.split.segments;
        float4* own = partial + (long long)(2 * blockIdx.x + (first == 0)) * QUADS + threadIdx.x;
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) {
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++) {
                float(&part)[WIDTH / 2] = sums[m][j / (WIDTH / 8)];
                if (j % (WIDTH / 8) == 0) wgmma_pin(part);
                const int i = j % (WIDTH / 8) * 4;
                const float4 four = make_float4(part[i], part[i + 1], part[i + 2], part[i + 3]);
                if (whole)
                    out.write(tile / w.token_tiles, tile % w.token_tiles, Quad(threadIdx.x, m, j), four);
                else
                    own[(m * (TOKENS / 8) + j) * GROUPS * 128] = four;
            }
        }
        unit += last - first;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
tile_linear(const u8* __restrict__ weights, const int* __restrict__ places, const u8* __restrict__ records,
            const u8* __restrict__ x,     // tile_arrange's: [token tiles][halves][TOKENS][64]
            const u16* __restrict__ bias, // [rows] bfloat16 or null
            u16* __restrict__ y,          // [tokens][rows] bfloat16
            float4* __restrict__ partial, // [2 blocks][QUADS], where tiles are cut
            int rows, int tokens, int halves, int chunk,
            int exponent) {               // sums are multiplied by 2^exponent
    extern __shared__ __align__(1024) u8 unaligned[];
    u8* shared = unaligned + (-shared_address(unaligned) & (STRIP_BYTES - 1));  // swizzle and patches go by addresses
    const u32 base = shared_address(shared);
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0);  // the compiler now knows that a warp has one trade
    const Barriers barriers(base + BARRIERS_AT);
    const u32 operands_x = base + A_SLOTS * A_BYTES;
    Weights w{weights, places, records, ceil_div(rows, TILE_ROWS), halves, ceil_div(tokens, TOKENS)};
    w.split.segments = ceil_div(halves, SEGMENT_HALVES);
    w.split.token_tiles = w.token_tiles;
    w.split.units = ceil_div(rows, TALL) * w.token_tiles * w.split.segments;
    w.split.chunk = chunk;
    const int begin = w.split.begin(blockIdx.x, gridDim.x), end = w.split.begin(blockIdx.x + 1, gridDim.x);
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    if (warp < CONSUMERS) {
#if CONSUMER_REGISTERS
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
#endif
        const Output out{bias, y, rows, tokens, __int_as_float((127 + exponent) << 23)};
        consume(w, out, partial, base, operands_x, barriers, begin, end);
    } else {
#if CONSUMER_REGISTERS
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(DECODER_REGISTERS));
#endif
        const int decoder = warp - CONSUMERS;
        const Arranged arranged{x, operands_x, barriers.x_full};
        decode_tiles(w, shared + STAGES_AT + decoder * STAGES * STAGE_BYTES, shared + RECORDS_AT + decoder * SLOT_BYTES,
                     arranged, base, barriers, decoder, begin, end);
    }
}
