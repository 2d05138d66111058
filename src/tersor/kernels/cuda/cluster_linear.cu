// y = x W^T (+ bias) for about a hundred tokens and more on Hopper: clusters of blocks share what they decode.
//
// As tile_linear.cu, with the tensor cores as the scarce thing. An instruction multiplies all tokens of a tile or, beyond
// the 256 that it may have, about half of them, so that operands are read from shared memory as seldom as can be; with 256 that
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
//
// A step of 64 columns takes as long as shared memory does for it: 40 KB and 384 bytes a token, 16 KB more where there are two
// instructions, at 128 bytes a cycle. Then comes power, which holds the GPU back and makes of every instruction time. So
// consumers do for a warp as a whole whatever they can, in uniform registers. The compiler loses sight of that at the first number
// by which a warp branches and that it has from a lane: `warp` is a parameter, and not threadIdx.x / WARP, for that reason, and
// waiting for a slot is what all lanes do.
#include "cluster_decode.cuh"
#include "tile_sums.cuh"

constexpr int THREADS = (CONSUMERS + DECODERS) * WARP;
constexpr bool DEALT = CONSUMER_REGISTERS > 0;  // consumers have more registers than decoders
static_assert(!DEALT || DECODERS % 4 == 0, "registers are given out to warpgroups");
// Tiles of few tokens are multiplied in less time than it takes a warp to ask for activations. So there the warpgroups ask
// in turns, and for a slot that the step before the last one gave back (or, at a tile's beginning, its sums).
constexpr bool IN_TURNS = TURNS > 1;
static_assert(!IN_TURNS || GROUPS == 2);
constexpr int AHEAD = X_SLOTS - 1 - IN_TURNS;  // steps that are asked for when none has been multiplied
// A tile's first stage asks for its second step's successor when both are under way, so both must have been asked for.
static_assert(AHEAD >= 2);
constexpr int PIECE_BYTES = STORED_TOKENS * ROW_BYTES;  // of a tile's sums on their way to y, for 64 rows
// Two of these have room where one step's activations were.
constexpr int X_SLOT_BYTES = PIECES > 1 && 2 * PIECE_BYTES > X_TILE_BYTES ? 2 * PIECE_BYTES : X_TILE_BYTES;
constexpr int X_AT = A_SLOTS * A_BYTES, STAGING_AT = X_AT + X_SLOTS * X_SLOT_BYTES, BARRIERS_AT = STAGING_AT + STAGING_BYTES;
// Rings begin at a multiple of STRIP_BYTES, dynamic shared memory at one of 1024.
static_assert(STRIP_BYTES - 1024 + BARRIERS_AT + BARRIER_BYTES <= SHARED_BYTES, "kernels/tile/variant.py has less than is laid out");

// What a consuming warp knows and needs seldom, in shared memory while sums need the registers. A tile of rows whose head is
// elsewhere is -1 - itself.
struct Parked {
    int rows, tokens, unit;  // the tile, and the unit after it
    u32 odd, whole;          // whether there was an odd number of whole ones, and whether it is one
    int left, col, token;    // ActivationFeed
    u32 slot, parity;
};

// Activations. A consuming warp asks for them: it has itself read the slot that it fills again, and there is nobody else.
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
        const bool leads = thread_anew() % WARP == 0;
        mbarrier_arrive_expect_if(leads, full, COPIES * COPY_TOKENS * ROW_BYTES);
#pragma unroll
        for (int i = 0; i < COPIES; i++)
            tensor_copy_if(leads, operands + turn.number * X_SLOT_BYTES + copy_begin(i) * ROW_BYTES, x, token + copy_begin(i), col,
                           full);
    }
    // To memory, by one lane, and back, by all.
    __device__ __forceinline__ void park(Parked& at) const {
        at.left = left, at.col = col, at.token = token, at.slot = turn.number, at.parity = turn.parity;
    }
    __device__ __forceinline__ void resume(const Parked& at) {
        left = at.left, col = at.col, token = at.token, turn.number = at.slot, turn.parity = at.parity;
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

// Where a tile's sums are on their way to y, in pieces: a warpgroup's own rows of the last stage of weights, so that the first
// piece waits for no other warpgroup; where the last activations were, so that those of the next tile's first steps come
// meanwhile; and of more than 256 tokens the third in room of its own or, if there is none, the stage of weights before.
//
// Half of the weights are still the source of copies to the other block, which therefore tells (`copied`) when it has those of
// a whole tile's last stage, before it waits for the last product. (Where tiles are cut nobody stages, or all have met.) It
// cannot be a whole tile further, and the barrier by two phases, where a row has A_SLOTS stages or more.
constexpr int STAGES_HELD = PIECES > 2 && STAGING_BYTES == 0 ? 2 : 1;
static_assert(GROUPS == 2 && PIECES <= 3 && PIECE_BYTES <= A_BLOCK_BYTES);
static_assert(STAGING_BYTES == 0 || STAGING_BYTES == 2 * PIECE_BYTES);
static_assert(A_SLOTS > STAGES_HELD, "the next tile begins before they are given back");

constexpr int TELLING = 5 * WARP;  // the thread that tells, which neither asks nor stores

template <typename Spare>
struct ReadOperands {
    u32 operands;
    const Turn<A_SLOTS>& weights;  // the next ones
    const Turn<X_SLOTS>& activations;
    Spare spare;  // it will not be used
    u32 copied;
    const Parked& parked;

    __device__ __forceinline__ u32 of(int block, int piece) const {
        if (piece == 1) return operands + X_AT + activations.before(1) * X_SLOT_BYTES + block * PIECE_BYTES;
        if (piece == 2 && STAGING_BYTES) return operands + STAGING_AT + block * PIECE_BYTES;
        return operands + (piece == 0 ? weights.before(1) : weights.before(2)) * A_BYTES + block * A_BLOCK_BYTES;
    }
    __device__ __forceinline__ void await(int piece) const {
        if (piece == 0) barrier_sync(2 + threadIdx.x / (4 * WARP), 4 * WARP);  // a warp's sums go across all their rows
        if (piece == 0 && CLUSTER > 1 && parked.whole) mbarrier_wait(copied, parked.odd);
        __syncwarp();
        if (piece == 1) barrier_sync(1, CONSUMERS * WARP);
    }
};

// Warp `warp`: known to be the same in all lanes, so that what it tells the tensor cores is reckoned once for a warp.
__device__ __forceinline__ void consume(const Weights& w, const Output& out, const TensorMap& x, const Parts& parts, u32 operands,
                                        const Barriers& b, int rank, const Run& run, int warp) {
    const int group = warp / 4;
    const u32 operands_x = operands + X_AT;
    const u32 a_tiles = descriptor(operands + group * BLOCKS_OF_64 * A_BLOCK_BYTES), x_tiles = descriptor(operands_x);
    const int lane = threadIdx.x % WARP;
    const u32 a_empty = b.a_empty_of(lane);
    ActivationFeed feed(w, rank, run.begin, run.end);
    const bool brings_x = warp % 4 == 0 && (IN_TURNS || group == 0);
    if (brings_x) {
        previous_done();
        let_next_begin();
        for (int i = 0; i < AHEAD; i++, feed.advance(w.split, 1))
            if (group == 0) feed.ask(x, operands_x, b);
        feed.advance(w.split, group);
    } else if (warp % 4 > 0) {
        help_later<CONSUMERS / 4 * 3>(w, run, warp / 4 * 3 + warp % 4 - 1, rank);
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
    u32 weights = 0, activations = 0;  // barriers `empty` of the slots before the next ones
    const auto weights_read = [&] {
        if (lane < CLUSTER) mbarrier_arrive_at(weights);
    };
    const auto activations_read = [&] {
        if (lane == CLUSTER) mbarrier_arrive(activations);
    };
    __shared__ Parked all_parked[CONSUMERS];
    Parked& parked = all_parked[warp];
    if (lane == 0) {
        const int2 tile = w.split.place(run.begin);
        parked.rows = run.begin % w.split.stages ? -1 - tile.x : tile.x, parked.tokens = tile.y, parked.odd = 0;
    }
    __syncwarp();
    int unit = uniform(run.begin), stages = uniform(w.split.in_tile(unit, run.end));
    sums.clear();
#pragma unroll 1
    while (true) {
        // What a tile's last steps have read, and its sums may pass through before it is given back: activations, of `steps`
        // ago, and weights.
        const auto last_activations_read = [&](int steps) {
            if (PIECES > 1 && lane == CLUSTER) mbarrier_arrive(b.x_empty + turn.before(steps) * 8);
        };
        const auto last_weights_read = [&](int stages) {
            if (lane < CLUSTER) mbarrier_arrive_at(a_empty + turn_a.before(1) * 8);
            if (STAGES_HELD > 1 && stages > 1 && lane < CLUSTER) mbarrier_arrive_at(a_empty + turn_a.before(2) * 8);
        };
        const bool settles = uniform(unit > run.begin);  // what the tile before left, when two steps are under way
        // The first stage and the others: the same text twice, so that what is done once is not asked for at every stage.
#pragma unroll
        for (int later = 0; later < 2; later++) {
#pragma unroll 1
            for (int k = later; k < (later ? stages : 1); k++) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    const bool first = !later && n == 0;
                    if (n == 0) mbarrier_wait(b.a_full + turn_a.number * 8, turn_a.parity);
                    mbarrier_wait(b.x_full + turn.number * 8, turn.parity);
                    const u32 a_at = a_tiles + (turn_a.number * A_BYTES + n * NEXT_TILE >> 4);
                    const u32 x_at = x_tiles + turn.number * (X_SLOT_BYTES >> 4);
                    wgmma_begin();
#pragma unroll
                    for (int i = 0; i < 4; i++) sums.add(a_at + i * DESCRIPTOR_STEP, x_at + i * DESCRIPTOR_STEP, !first || i > 0);
                    wgmma_commit();
                    bool stored = false;
                    if (!later && n == 1 && settles) {
                        stored = unit - run.begin >= w.split.stages;
                        sums.settle_part(run, parts, !stored);
                        sums.settle_two();
                        if (stored) last_activations_read(2);
                        if (lane == 0) {
                            const bool more = parked.tokens + 1 < w.split.token_tiles;
                            parked.rows = (parked.rows < 0 ? -1 - parked.rows : parked.rows) + !more;
                            parked.tokens = more ? parked.tokens + 1 : 0, parked.odd ^= stored;
                        }
                        __syncwarp();
                    }
                    wgmma_wait<1>();
                    if (later && n == 0 && (STAGES_HELD == 1 || k + 1 < stages)) weights_read();
                    if (!first) activations_read();
                    activations = b.x_empty + turn.number * 8;
                    // The first asks later, for a slot by way of which sums are stored.
                    if (!later && !IN_TURNS) {
                        if (n == 1 && settles) bring(0);
                        if (n == 1 || !settles) bring(n);
                    } else {
                        bring(n);
                    }
                    if (stored) sums.settle_stores(), last_weights_read(w.split.stages);
                    __syncwarp();
                    turn.advance();
                }
                weights = a_empty + turn_a.number * 8;
                turn_a.advance();
            }
        }
        if (stages == w.split.stages && thread_anew() == TELLING) b.tell_copied(rank ^ 1);
        __syncwarp();
        wgmma_wait<0>();
        if (PIECES == 1) activations_read();
        const Landing<BARRIERS_AT / (CONSUMERS * PART_BYTES)> landing(operands, b.landed);
        const auto quiet = [&] {  // here and in those who share these weights: a block copies its strips to them
            for (int i = 0; i < A_SLOTS; i++) {
                const u32 last = i < turn_a.number ? turn_a.parity : turn_a.parity ^ 1;
                mbarrier_wait(b.a_empty + i * 8, last);
            }
        };
        const auto spare = [&] { last_activations_read(1), last_weights_read(stages); };
        const ReadOperands<decltype(spare)> staging{operands, turn_a, turn, spare, b.copied, parked};
        if (lane == 0) parked.unit = unit + stages, parked.whole = stages == w.split.stages, feed.park(parked);
        __syncwarp();
        const int2 tile = make_int2(parked.rows, parked.tokens * CLUSTER + rank);
        sums.hand_over(out, w.split, run, parts, landing, quiet, staging, tile, stages, tile.x >= 0);
        unit = uniform(parked.unit), feed.resume(parked);
        if (unit == run.end) {
            sums.settle_part(run, parts, parked.rows < 0);
            break;
        }
        stages = min(run.end - unit, w.split.stages);
    }
    __syncwarp();
    cluster_arrive();  // while sums are stored
    sums.settle_stores();
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
cluster_linear(const u8* __restrict__ weights, const int* __restrict__ places, const u8* __restrict__ records,
               const __grid_constant__ TensorMap x,  // [tokens][cols] bfloat16, COPY_TOKENS x HALF_COLS at a time
               const __grid_constant__ TensorMap y,  // [tokens][rows] bfloat16, STORED_TOKENS x 64 at a time
               const u16* __restrict__ bias, // [rows] bfloat16 or null
               float4* __restrict__ partial, // [clusters][CLUSTER][QUADS], where tiles are cut
               u32* __restrict__ flags,      // [clusters][CLUSTER][CONSUMERS], zero
               int rows, int tokens, int halves, int chunk, int period,
               int exponent) {               // sums are multiplied by 2^exponent
    extern __shared__ __align__(1024) u8 unaligned[];
    const u32 operands = ceil_div(shared_address(unaligned), STRIP_BYTES) * STRIP_BYTES;  // swizzle and patches go by addresses
    const int warp = uniform(threadIdx.x / WARP);  // the compiler now knows that a warp has one trade
    const int rank = blockIdx.x % CLUSTER;
    const Barriers barriers(operands + BARRIERS_AT);
    const Weights w(weights, places, records, rows, tokens, halves, chunk);
    __shared__ Run run;
    if (warp < CONSUMERS) {
        if (threadIdx.x == 0) run.find(w.split, period), prefetch(y);
        if (threadIdx.x == WARP) barriers.init(), prefetch(x);
        all_begin();
        if constexpr (DEALT) more_registers<CONSUMER_REGISTERS>();
        const Output out{&y, bias, rows, power_of_two(exponent)};
        const Parts parts{partial, flags};
        consume(w, out, x, parts, operands, barriers, rank, run, warp);
    } else {
        if constexpr (DEALT) fewer_registers<DECODER_REGISTERS>();
        decode_strip(w, operands, barriers, warp - CONSUMERS, rank, period);
        __syncwarp();
        cluster_arrive();
    }
    cluster_wait();  // nobody leaves while others write to it
}
