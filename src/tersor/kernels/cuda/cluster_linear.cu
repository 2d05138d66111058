// y = x W^T (+ bias) for about a hundred tokens and more on Hopper: clusters of blocks share what they decode.
//
// As tile_linear.cu, with the tensor cores as the scarce thing. An instruction multiplies all tokens of a tile or, beyond
// the 256 that it may have, half of them, so that operands are read from shared memory as seldom as can be; with 256 that
// takes so many registers that there are twelve warps at most:
//
//   CONSUMERS   two warpgroups: wgmma on 64 rows x TOKENS tokens each, sums in registers
//   DECODERS    a warp for each strip of 16 rows that no other block decodes (cluster_decode.cuh)
//
// In a cluster (cluster_rings.cuh) each of CLUSTER blocks decodes its part of the rows' weights: they are decoded once for
// CLUSTER x TOKENS tokens. With CLUSTER = 1 a block decodes all of them, past shared memory too.
//
// Sums of more than 256 tokens do not leave an even share of registers for anything else. Then decoders, a warpgroup of
// them, give back what they do not need before they begin, and consumers wait for that.
#include "cluster_decode.cuh"
#include "tile_sums.cuh"

constexpr int THREADS = (CONSUMERS + DECODERS) * WARP;
constexpr bool DEALT = CONSUMER_REGISTERS > 0;  // consumers have more registers than decoders
static_assert(!DEALT || DECODERS == 4, "registers are given out to warpgroups");
constexpr int AHEAD = X_SLOTS - 2;  // steps from asking for activations to their product: a slot more is being read still
static_assert(AHEAD >= 1, "who asks for a slot has given it back before");
constexpr int X_AT = A_SLOTS * A_BYTES, AREAS_AT = X_AT + X_SLOTS * X_TILE_BYTES;
constexpr int BARRIERS_AT = AREAS_AT + DECODERS * RECORDS * AREA_BYTES;

// Activations, AHEAD steps before they are multiplied. A lane of the consumers asks for them: it alone has no other work, and
// has itself read the slot that it fills again.
struct ActivationFeed {
    int left, end, col;  // steps of the run; of a row, columns
    int token, tokens;   // the first of this block's tile; of all tiles
    Turn<X_SLOTS> turn;

    __device__ __forceinline__ ActivationFeed(const Weights& w, int rank, int begin, int stop) {
        const Cursor at(w, begin, stop, 0);
        left = 2 * (stop - begin);
        end = w.split.stages * STAGE_COLS, col = at.stage * STAGE_COLS;
        tokens = w.split.token_tiles * CLUSTER * TOKENS;
        token = (at.token_tile * CLUSTER + rank) * TOKENS;
    }
    __device__ __forceinline__ void ask(const TensorMap& x, u32 operands, const Barriers& b) {
        if (left == 0) return;
        left--;
        const u32 full = b.x_full + turn.number * 8;
        mbarrier_wait(full + X_SLOTS * 8, turn.parity ^ 1);
        mbarrier_arrive_expect(full, X_TILE_BYTES);
#pragma unroll
        for (int i = 0; i < COPIES; i++)
            tensor_copy(operands + turn.number * X_TILE_BYTES + i * (X_TILE_BYTES / COPIES), x, token + i * COPY_TOKENS, col, full);
        turn.advance();
        col += HALF_COLS;
        if (col < end) return;
        col = 0, token += CLUSTER * TOKENS;
        if (token >= tokens) token -= tokens;
    }
};

// Warpgroup `group`: known to be the same in all lanes, so that what it tells the tensor cores is reckoned once for a warp.
__device__ __forceinline__ void consume(const Weights& w, const Output& out, const TensorMap& x, const Parts& parts, u32 operands,
                                        const Barriers& b, int rank, const Run& run, int group) {
    const u32 operands_x = operands + X_AT;
    const u32 a_tiles = descriptor(operands + group * BLOCKS_OF_64 * A_BLOCK_BYTES), x_tiles = descriptor(operands_x);
    const int lane = threadIdx.x % WARP;
    const u32 a_empty = b.a_empty_of(lane);
    ActivationFeed feed(w, rank, run.begin, run.end);
    __shared__ __align__(alignof(ActivationFeed)) u8 kept[sizeof(ActivationFeed)];  // where registers are for sums
    ActivationFeed& activations = DEALT ? *(ActivationFeed*)kept : feed;
    const bool brings_x = threadIdx.x == 0;
    if (brings_x) {
        if (DEALT) activations = feed;
        previous_done();
        let_next_begin();
        for (int i = 0; i < AHEAD; i++) activations.ask(x, operands_x, b);
    }
    __syncwarp();
    cluster_wait();  // nobody tells others of slots before their barriers are there
    Sums sums;
    Turn<A_SLOTS> turn_a;
    Turn<X_SLOTS> turn;
    int unit = uniform(run.begin);
#pragma unroll 1
    while (unit < run.end) {
        const int stages = w.split.in_tile(unit, run.end);
        sums.clear();
        u32 read_a = 0, before = 0, read = 0;  // the slots before
#pragma unroll 1
        for (int k = 0; k < stages; k++) {
#pragma unroll
            for (int n = 0; n < 2; n++) {
                if (brings_x) activations.ask(x, operands_x, b);
                __syncwarp();
                if (n == 0) mbarrier_wait(b.a_full + turn_a.number * 8, turn_a.parity);
                mbarrier_wait(b.x_full + turn.number * 8, turn.parity);
                const u32 a_at = a_tiles + (turn_a.number * A_BYTES + n * NEXT_TILE >> 4);
                const u32 x_at = x_tiles + turn.number * (X_TILE_BYTES >> 4);
                wgmma_begin();
#pragma unroll
                for (int i = 0; i < 4; i++) sums.add(a_at + i * DESCRIPTOR_STEP, x_at + i * DESCRIPTOR_STEP);
                wgmma_commit();
                wgmma_wait<1>();
                if (n == 0 && k > 0 && lane < CLUSTER) mbarrier_arrive_at(a_empty + read_a * 8);
                // The last two steps' activations give their place to sums before it is given back.
                if ((n ? k + 1 < stages : k > 0) && lane == CLUSTER) mbarrier_arrive(b.x_empty + read * 8);
                before = read, read = turn.number;
                turn.advance();
            }
            read_a = turn_a.number;
            turn_a.advance();
        }
        wgmma_wait<0>();
        if (lane < CLUSTER) mbarrier_arrive_at(a_empty + read_a * 8);
        const Landing<AREAS_AT / (CONSUMERS * PART_BYTES)> landing(operands, b.landed);
        const auto quiet = [&] {  // here and in those who share these weights: a block copies its strips to them
            for (int i = 0; i < A_SLOTS; i++) {
                const u32 last = i < turn_a.number ? turn_a.parity : turn_a.parity ^ 1;
                mbarrier_wait(b.a_empty + i * 8, last);
            }
        };
        const Staging staging{operands_x + before * X_TILE_BYTES, (read - before) * X_TILE_BYTES};
        unit = sums.hand_over(out, w.split, run, parts, landing, quiet, staging, unit, rank);
        if (lane == CLUSTER) mbarrier_arrive(b.x_empty + before * 8), mbarrier_arrive(b.x_empty + read * 8);
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
cluster_linear(const u8* __restrict__ weights, const int* __restrict__ places, const u8* __restrict__ records,
               const __grid_constant__ TensorMap x,  // [tokens][cols] bfloat16, COPY_TOKENS x HALF_COLS at a time
               const __grid_constant__ TensorMap y,  // [tokens][rows] bfloat16, COPY_TOKENS x 64 at a time
               const u16* __restrict__ bias, // [rows] bfloat16 or null
               float4* __restrict__ partial, // [clusters][CLUSTER][QUADS], where tiles are cut
               u32* __restrict__ flags,      // [clusters][CLUSTER][CONSUMERS], zero
               int rows, int tokens, int halves, int chunk,
               int exponent) {               // sums are multiplied by 2^exponent
    extern __shared__ __align__(1024) u8 unaligned[];
    u8* shared = unaligned + (-shared_address(unaligned) & (STRIP_BYTES - 1));  // swizzle and patches go by addresses
    const u32 operands = shared_address(shared);
    const int warp = uniform(threadIdx.x / WARP);  // the compiler now knows that a warp has one trade
    const int rank = blockIdx.x % CLUSTER;
    const Barriers barriers(operands + BARRIERS_AT);
    const Weights w(weights, places, records, rows, tokens, halves, chunk);
    __shared__ Run run;
    if (threadIdx.x == 0) run.find(w.split), prefetch(y);
    if (threadIdx.x == WARP) barriers.init(), prefetch(x);
    __syncthreads();
    cluster_arrive();
    if (warp < CONSUMERS) {
        if constexpr (DEALT) more_registers<CONSUMER_REGISTERS>();
        const Output out{&y, bias, rows, power_of_two(exponent)};
        const Parts parts{partial, flags};
        consume(w, out, x, parts, operands, barriers, rank, run, warp / 4);
    } else {
        if constexpr (DEALT) fewer_registers<DECODER_REGISTERS>();
        decode_strip(w, shared + AREAS_AT, operands, barriers, warp - CONSUMERS, rank, run.begin, run.end);
    }
    __syncwarp();
    cluster_sync();  // nobody leaves while others write to it
}
