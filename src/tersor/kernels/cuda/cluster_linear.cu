// y = x W^T (+ bias) for about a hundred tokens and more on Hopper: clusters of blocks share what they decode.
//
// As tile_linear.cu, with the tensor cores as the scarce thing. An instruction multiplies all tokens of a tile or, beyond
// the 256 that it may have, half of them, so that operands are read from shared memory as seldom as can be; with 256 that
// takes so many registers that there are twelve warps at most:
//
//   CONSUMERS   two warpgroups: wgmma on 64 rows x TOKENS tokens each, sums in registers
//   DECODERS    a warp for each strip of 16 rows that no other block decodes, or two that take turns (cluster_decode.cuh)
//
// In a cluster (cluster_rings.cuh) each of CLUSTER blocks decodes its part of the rows' weights: they are decoded once for
// CLUSTER x TOKENS tokens. With CLUSTER = 1 a block decodes all of them.
//
// Where sums leave too little of an even share of registers, decoders, whole warpgroups of them, give some back before
// they begin, and consumers wait for that.
#include "cluster_decode.cuh"
#include "tile_sums.cuh"

constexpr int THREADS = (CONSUMERS + DECODERS) * WARP;
constexpr bool DEALT = CONSUMER_REGISTERS > 0;  // consumers have more registers than decoders
static_assert(!DEALT || DECODERS % 4 == 0, "registers are given out to warpgroups");
// Tiles of few tokens are multiplied in less time than it takes a lane to ask for activations. So there the warpgroups ask
// in turns, and when they have issued a step rather than before it.
constexpr bool IN_TURNS = TURNS > 1;
static_assert(!IN_TURNS || GROUPS == 2);
constexpr int AHEAD = X_SLOTS - 2;  // steps from asking for activations to their product: a slot more is being read still
static_assert(AHEAD >= 1, "who asks for a slot has given it back before");
constexpr int COPY_BYTES = COPY_TOKENS * ROW_BYTES;
constexpr int X_AT = A_SLOTS * A_BYTES, BARRIERS_AT = X_AT + X_SLOTS * X_TILE_BYTES;

// Activations, AHEAD steps before they are multiplied. A lane of a consuming warp asks for them: it has itself read the slot
// that it fills again, and there is nobody else. It takes some hundred cycles, and twice that if this is not in registers.
struct ActivationFeed {
    int left, col;  // steps of the run; of the row, columns
    int token;      // the first of this block's tile
    Turn<X_SLOTS> turn;

    __device__ __forceinline__ ActivationFeed(const Weights& w, int rank, int begin, int stop) {
        const Walk at(w, begin, 0);
        left = 2 * (stop - begin);
        col = at.stage * STAGE_COLS;
        token = (at.token_tile * CLUSTER + rank) * TOKENS;
    }
    __device__ __forceinline__ void ask(const TensorMap& x, u32 operands, const Barriers& b) {
        if (left <= 0) return;
        const u32 full = b.x_full + turn.number * 8;
        mbarrier_wait(full + X_SLOTS * 8, turn.parity ^ 1);
        mbarrier_arrive_expect(full, COPIES * COPY_BYTES);
#pragma unroll
        for (int i = 0; i < COPIES; i++)
            tensor_copy(operands + turn.number * X_TILE_BYTES + i * COPY_STEP * ROW_BYTES, x, token + i * COPY_STEP, col, full);
    }
    __device__ __forceinline__ void advance(const Split& split, int steps) {
        left -= steps;
        turn.advance(steps);
        col += steps * HALF_COLS;
        if (col >= split.stages * STAGE_COLS) {  // a row has two steps at least
            col -= split.stages * STAGE_COLS, token += CLUSTER * TOKENS;
            if (token >= split.token_tiles * CLUSTER * TOKENS) token -= split.token_tiles * CLUSTER * TOKENS;
        }
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
    const bool brings_x = threadIdx.x % (4 * WARP) == 0 && (IN_TURNS || group == 0);
    if (brings_x) {
        previous_done();
        let_next_begin();
        for (int i = 0; i < AHEAD; i++, feed.advance(w.split, 1))
            if (group == 0) feed.ask(x, operands_x, b);
        feed.advance(w.split, group);
    }
    const auto bring = [&](int step) {
        if (brings_x && (!IN_TURNS || step == group)) feed.ask(x, operands_x, b), feed.advance(w.split, 1 + IN_TURNS);
        __syncwarp();
    };
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
        u32 read_a = 0, read = 0;  // the slots before
#pragma unroll 1
        for (int k = 0; k < stages; k++) {
#pragma unroll
            for (int n = 0; n < 2; n++) {
                if (!IN_TURNS) bring(n);
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
                read = turn.number;
                if (IN_TURNS) bring(n);
                turn.advance();
            }
            read_a = turn_a.number;
            turn_a.advance();
        }
        wgmma_wait<0>();
        if (lane < CLUSTER) mbarrier_arrive_at(a_empty + read_a * 8);
        const Landing<BARRIERS_AT / (CONSUMERS * PART_BYTES)> landing(operands, b.landed);
        const auto quiet = [&] {  // here and in those who share these weights: a block copies its strips to them
            for (int i = 0; i < A_SLOTS; i++) {
                const u32 last = i < turn_a.number ? turn_a.parity : turn_a.parity ^ 1;
                mbarrier_wait(b.a_empty + i * 8, last);
            }
        };
        const u32 before = read ? read - 1 : X_SLOTS - 1;  // a tile has two steps at least
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
    const u32 operands = ceil_div(shared_address(unaligned), STRIP_BYTES) * STRIP_BYTES;  // swizzle and patches go by addresses
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
        decode_strip(w, operands, barriers, warp - CONSUMERS, rank, run.begin, run.end);
    }
    __syncwarp();
    cluster_sync();  // nobody leaves while others write to it
}
