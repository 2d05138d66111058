// y = x W^T (+ bias) with W in the `fast` layout (window/layout.py), for 1 to TOKENS tokens.
//
// A block of threads stays on its multiprocessor and works through spans (16 rows x 1024 columns) of its
// strips, SPANS at a time, called a round:
//
//   CONSUMERS warps   two per span of the round, one per segment (512 columns): stream the segment through a
//                     ring, decode, multiply on the tensor cores, leave 16 x TOKENS sums in `sums`, go on
//   4 epilogue warps  per 8 tokens, four rows each, thread = (row, j): meanwhile multiply the exceptions of the
//                     row; then add the segments up in their fixed order, for token j, and write
//
// The two meet once a round through `sums`, which is double: consumers run up to a round ahead, and the
// stream from memory never stops at the end of a strip.
//
// SLICE = 0: activations come through L1 (few tokens). The grid is (blocks, 1), y is written.
// SLICE = n: blockIdx.y takes n spans of the columns, whose activations stay in shared memory; the sums of
//            each span go to `partial`, and window_combine adds them, in the same order.
#include "exceptions.cuh"
#include "ring.cuh"
#include "window_fragment.cuh"

constexpr int STRIP = TILE_ROWS;
constexpr int TILES = TOKENS / 8;                        // groups of 8 tokens: the n of the matrix instruction
constexpr int EPILOGUE = TILES * STRIP * LANES_PER_ROW;  // threads
constexpr int THREADS = CONSUMERS * WARP + EPILOGUE;
constexpr int STAGE_BYTES = 2 * BLOCK_BYTES;             // two blocks, 128 columns
constexpr int SEGMENT_BLOCKS = SEGMENT_COLS / BLOCK_COLS, SPAN_BLOCKS = SPAN_COLS / BLOCK_COLS;
constexpr int SEGMENT_STAGES = SEGMENT_BLOCKS / 2, SPAN_SEGMENTS = SPAN_COLS / SEGMENT_COLS;
constexpr int SPANS = CONSUMERS / SPAN_SEGMENTS;         // in a round
constexpr int SUM_PITCH = STRIP + 1;                     // floats; keeps tokens in different banks
constexpr int SUM = TOKENS * SUM_PITCH;                  // floats of one segment
constexpr int SLICE_PITCH = SLICE * SPAN_COLS + 8;       // elements; 16 bytes more, likewise
[[maybe_unused]] constexpr int READY = 1;                // named barriers: the slice of x is in place,
constexpr int FULL = 2, EMPTY = 4;                       // + 0 or 1 by the round's parity

// Where in its share of the matrix a warp is. Spans are counted within blockIdx.y's columns.
struct Place {
    int strip, span;

    __device__ __forceinline__ void advance(int by, int spans) {
        span += by;
        while (span >= spans) span -= spans, strip += gridDim.x;
    }
};

struct Problem {
    const u8* weights;   // of the first block of this slice
    const u16* x;        // of the first column of this slice
    int x_pitch, tokens, strips, row_blocks, blocks, spans, rounds;  // `blocks` and `spans`: of this slice
};

template <typename T>
__device__ __forceinline__ T read_x(const T* at) {
#if SLICE
    return *at;
#else
    return __ldg(at);
#endif
}

// The activations of a block's four steps: token g of a tile, columns 16 t to 16 t + 15.
struct Activations {
    u32 b[2 * STEPS];

    __device__ __forceinline__ void load(const u16* at, bool any) {
        uint4 low = make_uint4(0, 0, 0, 0), high = low;
        if (any) {
            low = read_x((const uint4*)at);
            high = read_x((const uint4*)at + 1);
        }
        b[0] = low.x, b[1] = low.y, b[2] = low.z, b[3] = low.w;
        b[4] = high.x, b[5] = high.y, b[6] = high.z, b[7] = high.w;
    }
};

// A warp's weights, segment after segment, each SEGMENT_STAGES stages, the last of them empty if it is short.
struct Feed {
    Ring<STAGES, STAGE_BYTES> ring;
    const u8* from;
    int left, stage = 0, segment, lane;
    Place place;

    __device__ __forceinline__ Feed(const Problem& p, u8* stages, Place place, int segment, int lane)
        : ring(stages, lane), segment(segment), lane(lane), place(place) {
        aim(p);
        for (int i = 0; i < STAGES - 1; i++) fetch(p);
    }
    __device__ __forceinline__ void aim(const Problem& p) {
        const int block = place.span * SPAN_BLOCKS + segment * SEGMENT_BLOCKS;
        left = place.strip < p.strips ? min(p.blocks - block, SEGMENT_BLOCKS) * BLOCK_BYTES : 0;
        from = p.weights + ((long long)place.strip * p.row_blocks + block) * BLOCK_BYTES + lane * 16;
    }
    __device__ __forceinline__ void fetch(const Problem& p) {
        ring.fill(from, left, lane);
        from += STAGE_BYTES;
        left -= STAGE_BYTES;
        if (++stage == SEGMENT_STAGES) {
            stage = 0;
            place.advance(SPANS, p.spans);
            aim(p);
        }
    }
};

__device__ __forceinline__ void consume(const Problem& p, u8* stages, float* sums) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int segment = warp % SPAN_SEGMENTS;
    stages += warp * STAGES * STAGE_BYTES;
    Place place{(int)blockIdx.x, 0};
    place.advance(warp / SPAN_SEGMENTS, p.spans);
    Feed feed(p, stages, place, segment, lane);
#if SLICE
    barrier_sync(READY, THREADS);
#endif
    for (int round = 0; round < p.rounds; round++) {
        float sum[TILES][4] = {};
        const int first = place.span * SPAN_BLOCKS + segment * SEGMENT_BLOCKS;
        const int blocks = place.strip < p.strips ? p.blocks - first : 0;  // up to SEGMENT_BLOCKS, or more
        const u16* at = p.x + (long long)g * p.x_pitch + first * BLOCK_COLS + t * 16;
#pragma unroll 1
        for (int block = 0; block < SEGMENT_BLOCKS; block += 2, at += 2 * BLOCK_COLS) {
#if !SLICE
            Activations near[TILES][2];
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    near[n][h].load(at + (long long)n * 8 * p.x_pitch + h * BLOCK_COLS,
                                    n * 8 + g < p.tokens && block + h < blocks);
#endif
            const u8* stage = stages + feed.ring.read();
            feed.fetch(p);
            if (block >= blocks) continue;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Fragments weight;
                weight.load(stage + h * BLOCK_BYTES, lane);
#pragma unroll
                for (int n = 0; n < TILES; n++) {
#if SLICE
                    Activations act;
                    act.load(at + n * 8 * SLICE_PITCH + h * BLOCK_COLS, block + h < blocks);
#else
                    const Activations& act = near[n][h];
#endif
#pragma unroll
                    for (int i = 0; i < STEPS; i++) mma_bf16(sum[n], weight.a[i], act.b[2 * i], act.b[2 * i + 1]);
                }
            }
        }
        if (round >= 2) barrier_sync(EMPTY + round % 2, THREADS);
        float* out = sums + (round % 2 * CONSUMERS + warp) * SUM + 2 * t * SUM_PITCH + g;
#pragma unroll
        for (int n = 0; n < TILES; n++, out += 8 * SUM_PITCH) {
            out[0] = sum[n][0];
            out[SUM_PITCH] = sum[n][1];
            out[8] = sum[n][2];
            out[SUM_PITCH + 8] = sum[n][3];
        }
        barrier_arrive(FULL + round % 2, THREADS);
        place.advance(SPANS, p.spans);
    }
}

// Token j's sum over the exceptions of one row and span, times N tokens (those that do not exist: the last again).
template <int N>
__device__ __forceinline__ float multiply(const RowExceptions& row, int j, const u16* x, int x_pitch, int tokens) {
    const float filler = row_filler(row.base);
    float sum[8] = {};
    const u16* of_token[N];
#pragma unroll
    for (int k = 0; k < N; k++) of_token[k] = x + min(k, tokens - 1) * x_pitch;
    for (int e = row.begin + j; e < row.end; e += 2 * LANES_PER_ROW) {  // two at a time: their loads overlap
        const bool two = e + LANES_PER_ROW < row.end;
        const int f = two ? e + LANES_PER_ROW : e;
        const u32 c = row.column(e), d = row.column(f);
        const float v = __uint_as_float(row.value(e)) - filler, w = __uint_as_float(row.value(f)) - filler;
        u16 a[N], b[N];
#pragma unroll
        for (int k = 0; k < N; k++) a[k] = read_x(of_token[k] + c), b[k] = read_x(of_token[k] + d);
#pragma unroll
        for (int k = 0; k < N; k++) {
            sum[k] += v * from_bf16(a[k]);
            if (two) sum[k] += w * from_bf16(b[k]);
        }
    }
    return N == 1 ? lanes_sum(sum[0]) : transpose_sum(sum, j);
}

__device__ __forceinline__ float correction(const RowExceptions& row, int j, const u16* x, int x_pitch, int tokens) {
    if (tokens <= 0) return 0;
    if (tokens == 1) return multiply<1>(row, j, x, x_pitch, tokens);
    if (tokens == 2) return multiply<2>(row, j, x, x_pitch, tokens);
    if (tokens <= 4) return multiply<4>(row, j, x, x_pitch, tokens);
    return multiply<8>(row, j, x, x_pitch, tokens);
}

struct Output {
    const u16* bias;
    u16* y;
    float* partial;  // of the first span of this slice
    int rows;
};

__device__ __forceinline__ void finish(const Problem& p, const Output& out, RecordStream& records, const float* sums,
                                       float2* kept) {
    const int thread = threadIdx.x - CONSUMERS * WARP, tile = thread / (EPILOGUE / TILES), lane = thread % WARP;
    const int row = thread % (EPILOGUE / TILES) / LANES_PER_ROW, j = lane % LANES_PER_ROW, token = tile * 8 + j;
    const u16* x = p.x + (long long)tile * 8 * p.x_pitch;
    kept += thread;  // [SPANS][EPILOGUE]: a span's correction and scale, from one half of the round to the other
    records.start();
#if SLICE
    barrier_sync(READY, THREADS);
#endif
    Place gathered{(int)blockIdx.x, 0}, place = gathered;
    float total = 0;
    for (int round = 0; round < p.rounds; round++) {
#pragma unroll 1
        for (int s = 0; s < SPANS && gathered.strip < p.strips; s++) {
            const RowExceptions own(records.next(), row % RECORD_ROWS);
            const float part = correction(own, j, x + gathered.span * SPAN_COLS, p.x_pitch, p.tokens - tile * 8);
            kept[s * EPILOGUE] = make_float2(part, row_scale(own.base));
            gathered.advance(1, p.spans);
        }
        barrier_sync(FULL + round % 2, THREADS);
        const float* in = sums + round % 2 * CONSUMERS * SUM + token * SUM_PITCH + row;
#pragma unroll 1
        for (int s = 0; s < SPANS && place.strip < p.strips; s++) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < SPAN_SEGMENTS; i++, in += SUM) sum += *in;
            const float2 keep = kept[s * EPILOGUE];
            const float part = sum * keep.y + keep.x;
            const int r = place.strip * STRIP + row;
            const bool write = r < out.rows && token < p.tokens;
            if (gridDim.y > 1) {
                if (write) out.partial[((long long)place.span * p.tokens + token) * out.rows + r] = part;
            } else {
                total += part;
                if (place.span + 1 == p.spans) {
                    if (write)
                        out.y[(long long)token * out.rows + r] =
                            to_bf16(total + (out.bias ? from_bf16(__ldg(out.bias + r)) : 0.f));
                    total = 0;
                }
            }
            place.advance(1, p.spans);
        }
        if (round + 2 < p.rounds) barrier_arrive(EMPTY + round % 2, THREADS);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
window_linear(const u8* __restrict__ weights,   // blocks of the `fast` layout
              const int* __restrict__ places, const u8* __restrict__ records,
              const u16* __restrict__ x,        // [tokens][x_pitch] bfloat16, zero from `cols` on
              const u16* __restrict__ bias,     // [rows] bfloat16 or null
              u16* __restrict__ y,              // [tokens][rows] bfloat16
              float* __restrict__ partial,      // [row_spans][tokens][rows], where gridDim.y > 1
              int rows, int row_blocks, int row_spans, int x_pitch, int tokens) {
    extern __shared__ __align__(128) u8 shared[];
    u8* rings = shared + CONSUMERS * STAGES * STAGE_BYTES;
    float* sums = (float*)(rings + EPILOGUE / WARP * RECORD_RING);  // [2][CONSUMERS][TOKENS][SUM_PITCH]
    float2* kept = (float2*)(sums + 2 * CONSUMERS * SUM);
    const int first_span = SLICE * blockIdx.y, first_block = first_span * SPAN_BLOCKS;
    Problem p;
    p.weights = weights + (long long)first_block * BLOCK_BYTES;
    p.x = x + first_span * SPAN_COLS;
    p.x_pitch = x_pitch;
    p.tokens = tokens;
    p.strips = ceil_div(rows, STRIP);
    p.row_blocks = row_blocks;
    p.blocks = SLICE ? min(row_blocks - first_block, SLICE * SPAN_BLOCKS) : row_blocks;
    p.spans = ceil_div(p.blocks, SPAN_BLOCKS);
    p.rounds = ceil_div(ceil_div(p.strips - (int)blockIdx.x, gridDim.x) * p.spans, SPANS);
#if SLICE
    u16* slice = (u16*)(kept + SPANS * EPILOGUE);  // [TOKENS][SLICE_PITCH]
    const int pieces = p.blocks * (BLOCK_COLS / 8);
    for (int i = threadIdx.x; i < TOKENS * pieces; i += THREADS) {
        const int token = i / pieces, piece = i % pieces;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (token < tokens) v = __ldg((const uint4*)(p.x + (long long)token * x_pitch) + piece);
        *((uint4*)(slice + token * SLICE_PITCH) + piece) = v;
    }
    p.x = slice;
    p.x_pitch = SLICE_PITCH;
#endif
    if (threadIdx.x < CONSUMERS * WARP) return consume(p, shared, sums);
    const int warp = threadIdx.x / WARP - CONSUMERS;
    u8* ring = rings + warp * RECORD_RING;
    RecordStream stream{places + first_span * RECORDS_PER_SPAN + warp % RECORDS_PER_SPAN, records, ring,
                        (int2*)(ring + RECORDS_AHEAD * SLOT_BYTES), (int)threadIdx.x % WARP, row_spans, p.spans,
                        p.strips, (int)blockIdx.x};
    const Output out{bias, y, partial + (long long)first_span * tokens * rows, rows};
    finish(p, out, stream, sums, kept);
}
