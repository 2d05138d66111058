// y = x W^T (+ bias) with W in the `fast` layout (window/layout.py), for 1 to TOKENS tokens.
//
// A block of threads stays on its multiprocessor and works through spans (16 rows x 1024 columns) of its
// strips, SPANS at a time, called a round:
//
//   CONSUMERS warps   two per span of the round, one per segment (512 columns): stream the segment through a
//                     ring, decode, multiply on the tensor cores, add the segment's exceptions on the ordinary
//                     cores, leave 16 x TOKENS sums in `sums`, go on
//   1 warp            per 8 tokens: adds the segments up in their fixed order and writes
//
// The two meet once a round through `sums`, which is double (BUFFERS = 2) where there is room: consumers run up to
// a round ahead, and the stream from memory never stops at the end of a strip.
//
// The text is compiled for the number of input features and for 1, 2, 4, 8, 16 or 32 tokens (TOKENS), so that
// addresses of activations are one register and a constant.
//
// SLICE = 0: activations come through L1 (few tokens; x has TOKENS rows). The grid is (blocks, 1), y is written.
// SLICE = n: blockIdx.y takes n spans of the columns, whose activations stay in shared memory, eight tokens
//            side by side (activations.cuh); the sums of each span go to `partial`, and window_combine adds
//            them, in the same order.
#include "window_work.cuh"

constexpr int THREADS = (CONSUMERS + TILES) * WARP;
constexpr int SUM_PITCH = STRIP + 1;                // floats; keeps tokens in different banks
constexpr int SUM = TOKENS * SUM_PITCH;             // floats of one segment
[[maybe_unused]] constexpr int READY = 1;           // named barriers: the slice of x is in place,
constexpr int FULL = 2, EMPTY = 4;                  // + 0 or 1: which of the buffers

// Add the exceptions of a segment, from column `first` on, to its sums for the tokens of TOGETHER tiles. Two lanes share
// a row: lane = 2 row + j takes every second exception, two at a time so that their loads overlap.
constexpr int TOGETHER = TILES % 2 ? 1 : 2;

__device__ __forceinline__ void add_exceptions(float* sums, const RowExceptions& row, int lane, const Activations& x,
                                               int tile, int first) {
    constexpr int KEPT = TILE > 1 ? TILE / 2 : 1;  // tokens of a tile whose sum a lane ends up with
    const int j = lane % 2;
    const float filler = row_filler(row.base);
    float sum[TOGETHER][TILE] = {};
#pragma unroll 1
    for (int e = row.begin + j; e < row.end; e += 4) {
        const bool two = e + 2 < row.end;
        const u32 a = row.entries[e], b = row.entries[two ? e + 2 : e];
        const int c = first + exception_column(a), d = first + exception_column(b);
        const float v = exception_value(a) - filler, w = exception_value(b) - filler;
        TokenValues p[TOGETHER], q[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) p[n] = x.column(tile + n, c), q[n] = x.column(tile + n, d);
#pragma unroll
        for (int n = 0; n < TOGETHER; n++)
#pragma unroll
            for (int k = 0; k < TILE; k++) {
                sum[n][k] += v * p[n][k];
                if (two) sum[n][k] += w * q[n][k];
            }
    }
    float* out = sums + (tile * 8 + KEPT * j) * SUM_PITCH + lane / 2;
#pragma unroll
    for (int n = 0; n < TOGETHER; n++)
#pragma unroll
        for (int k = 0; k < KEPT; k++) {  // lane j keeps tokens KEPT j + k
            const int other = TILE > 1 ? k + KEPT : k;
            const float kept = j ? sum[n][other] : sum[n][k], sent = j ? sum[n][k] : sum[n][other];
            const float both = kept + __shfl_xor_sync(ALL_LANES, sent, 1);
            if (TILE > 1 || j == 0) out[(n * 8 + k) * SUM_PITCH] += both;
        }
}

__device__ __forceinline__ void consume(const Problem& p, u8* stages, u8* slots, float* sums) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int segment = warp % SPAN_SEGMENTS;
    stages += warp * STAGES * STAGE_BYTES;
    Position place{(int)blockIdx.x, 0};
    place.advance(warp / SPAN_SEGMENTS, p.spans);
    Feed feed(p, stages, place, segment, lane);
    Record next{slots + warp * SLOT_BYTES};
    next.locate(p, place, segment);
    previous_done();
    let_next_begin();
#if SLICE
    p.x.stage(p.blocks * BLOCK_COLS, p.tokens, threadIdx.x, THREADS);
    barrier_sync(READY, THREADS);
#endif
#pragma unroll 1
    for (int round = 0; round < p.rounds; round++) {
        float sum[TILES][4] = {};
        const int first = place.span * SPAN_BLOCKS + segment * SEGMENT_BLOCKS;
        const int blocks = place.strip < p.strips ? p.blocks - first : 0;  // up to SEGMENT_BLOCKS, or more
        __syncwarp();  // every lane is done with the record before
        const u8* record = next.ask(p, lane);
        place.advance(SPANS, p.spans);
        next.locate(p, place, segment);
        ActivationBlocks<TILES> x(p.x, first * BLOCK_COLS, lane);
#pragma unroll 1
        for (int block = 0; block < SEGMENT_BLOCKS; block += 2) {
            x.prefetch(blocks - block);
            Stage weight;
            weight.open(stages + feed.ring.read(), lane);
            feed.fetch(p);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (block + h >= blocks) break;
                u32 a[STEPS][4];
                weight.half(a, h);
#pragma unroll
                for (int i = 0; i < STEPS; i += 2) {  // tiles innermost: their sums do not wait for each other
                    u32 b[TILES][4];
#pragma unroll
                    for (int n = 0; n < TILES; n++) x.load(b[n], n, h, i / 2);
#pragma unroll
                    for (int k = 0; k < 2; k++)
#pragma unroll
                        for (int n = 0; n < TILES; n++) mma_bf16(sum[n], a[i + k], b[n][2 * k], b[n][2 * k + 1]);
                }
            }
            x.advance();
        }
        if (round >= BUFFERS) barrier_sync(EMPTY + round % BUFFERS, THREADS);
        float* own = sums + (round % BUFFERS * CONSUMERS + warp) * SUM;
        if (blocks > 0) {
            const float low = row_scale(record[BASES_AT + g]), high = row_scale(record[BASES_AT + g + 8]);
            float* out = own + 2 * t * SUM_PITCH + g;
#pragma unroll
            for (int n = 0; n < TILES; n++, out += 8 * SUM_PITCH) {
                if (2 * t < TILE) {
                    out[0] = sum[n][0] * low;
                    out[8] = sum[n][2] * high;
                }
                if (2 * t + 1 < TILE) {
                    out[SUM_PITCH] = sum[n][1] * low;
                    out[SUM_PITCH + 8] = sum[n][3] * high;
                }
            }
            __syncwarp();
            const RowExceptions row(record, lane / 2);
#pragma unroll 1
            for (int n = 0; n < TILES && n * 8 < p.tokens; n += TOGETHER)
                add_exceptions(own, row, lane, p.x, n, first * BLOCK_COLS);
        } else {
            for (int i = lane; i < SUM; i += WARP) own[i] = 0;
        }
        barrier_arrive(FULL + round % BUFFERS, THREADS);
    }
}

struct Output {
    const u16* bias;
    u16* y;
    float* partial;  // of the first span of this slice
    int rows;
};

// Lane = (tokens, row): add up the segments of each span, the spans of each strip, and write.
__device__ __forceinline__ void finish(const Problem& p, const Output& out, const float* sums) {
    constexpr int OWN = TILE > 1 ? TILE / 2 : 1;  // tokens of a lane
    const int tile = threadIdx.x / WARP - CONSUMERS, lane = threadIdx.x % WARP;
    const int row = lane % STRIP, token = tile * 8 + lane / STRIP * OWN;
    Position place{(int)blockIdx.x, 0};
    float total[OWN] = {};
    previous_done();
#if SLICE
    p.x.stage(p.blocks * BLOCK_COLS, p.tokens, threadIdx.x, THREADS);
    barrier_sync(READY, THREADS);
#endif
    for (int round = 0; round < p.rounds; round++) {
        barrier_sync(FULL + round % BUFFERS, THREADS);
        const float* in = sums + round % BUFFERS * CONSUMERS * SUM + min(token, TOKENS - OWN) * SUM_PITCH + row;
#pragma unroll 1
        for (int s = 0; s < SPANS && place.strip < p.strips; s++, in += SPAN_SEGMENTS * SUM) {
            const int r = place.strip * STRIP + row;
            const bool last = place.span + 1 == p.spans;
#pragma unroll
            for (int k = 0; k < OWN; k++) {
                float part = 0;
#pragma unroll
                for (int i = 0; i < SPAN_SEGMENTS; i++) part += in[i * SUM + k * SUM_PITCH];
                const bool write = r < out.rows && token + k < p.tokens;
                if (gridDim.y > 1) {
                    if (write) out.partial[((long long)place.span * p.tokens + token + k) * out.rows + r] = part;
                } else {
                    total[k] += part;
                    if (last && write)
                        out.y[(long long)(token + k) * out.rows + r] =
                            to_bf16(total[k] + (out.bias ? from_bf16(__ldg(out.bias + r)) : 0.f));
                    if (last) total[k] = 0;
                }
            }
            place.advance(1, p.spans);
        }
        if (round + BUFFERS < p.rounds) barrier_arrive(EMPTY + round % BUFFERS, THREADS);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
window_linear(const u8* __restrict__ weights,   // blocks of the `fast` layout
              const int* __restrict__ places, const u8* __restrict__ records,
              const u16* __restrict__ x,        // [tokens][X_PITCH] bfloat16, zero from the last column on
              const u16* __restrict__ bias,     // [rows] bfloat16 or null
              u16* __restrict__ y,              // [tokens][rows] bfloat16
              float* __restrict__ partial,      // [spans of a row][tokens][rows], where gridDim.y > 1
              int rows, int tokens) {
    extern __shared__ __align__(128) u8 shared[];
    constexpr int row_blocks = X_PITCH / BLOCK_COLS;
    u8* slots = shared + CONSUMERS * STAGES * STAGE_BYTES;
    float* sums = (float*)(slots + CONSUMERS * SLOT_BYTES);  // [BUFFERS][CONSUMERS][TOKENS][SUM_PITCH]
    const int first_span = SLICE * blockIdx.y, first_block = first_span * SPAN_BLOCKS;
    Problem p;
    p.weights = weights + (long long)first_block * BLOCK_BYTES;
    p.places = places + first_span * SPAN_SEGMENTS;
    p.records = records;
    p.tokens = tokens;
    p.strips = ceil_div(rows, STRIP);
    p.row_blocks = row_blocks;
    p.row_segments = ceil_div(row_blocks, SEGMENT_BLOCKS);
    p.blocks = SLICE ? min(row_blocks - first_block, SLICE * SPAN_BLOCKS) : row_blocks;
    p.spans = ceil_div(p.blocks, SPAN_BLOCKS);
    p.rounds = ceil_div(ceil_div(p.strips - (int)blockIdx.x, gridDim.x) * p.spans, SPANS);
    u8* slice = (u8*)(sums + BUFFERS * CONSUMERS * SUM);
    p.x = Activations{x + first_span * SPAN_COLS, slice};
    if (threadIdx.x < CONSUMERS * WARP)
        consume(p, shared, slots, sums);
    else
        finish(p, {bias, y, partial + (long long)first_span * tokens * rows, rows}, sums);
}
