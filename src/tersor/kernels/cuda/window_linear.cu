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
constexpr int TILES = TOKENS / 8;                   // groups of 8 tokens: the n of the matrix instruction
constexpr int THREADS = (CONSUMERS + TILES) * WARP;
constexpr int STAGE_BYTES = 2 * BLOCK_BYTES;        // two blocks, 128 columns
constexpr int SEGMENT_BLOCKS = SEGMENT_COLS / BLOCK_COLS, SPAN_BLOCKS = SPAN_COLS / BLOCK_COLS;
constexpr int SEGMENT_STAGES = SEGMENT_BLOCKS / 2, SPAN_SEGMENTS = SPAN_COLS / SEGMENT_COLS;
constexpr int SPANS = CONSUMERS / SPAN_SEGMENTS;    // in a round
constexpr int SLOT_BYTES = 2 * WARP * 16;           // a record of up to 244 exceptions (3 %); longer ones stay in memory
constexpr int SUM_PITCH = STRIP + 1;                // floats; keeps tokens in different banks
constexpr int SUM = TOKENS * SUM_PITCH;             // floats of one segment
constexpr int SLICE_PITCH = SLICE * SPAN_COLS + 8;  // elements; 16 bytes more, likewise
[[maybe_unused]] constexpr int READY = 1;           // named barriers: the slice of x is in place,
constexpr int FULL = 2, EMPTY = 4;                  // + 0 or 1 by the round's parity

// Where in its share of the matrix a warp is. Spans are counted within blockIdx.y's columns.
struct Position {
    int strip, span;

    __device__ __forceinline__ void advance(int by, int spans) {
        span += by;
        while (span >= spans) span -= spans, strip += gridDim.x;
    }
};

struct Problem {
    const u8* weights;   // of the first block of this slice
    const int* places;   // of the first record of this slice
    const u8* records;
    const u16* x;        // of the first column of this slice
    int x_pitch, tokens, strips, row_blocks, row_segments;  // of the whole matrix,
    int blocks, spans, rounds;                              // of this slice
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
    Position place;

    __device__ __forceinline__ Feed(const Problem& p, u8* stages, Position place, int segment, int lane)
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

// A segment's record: asked for when its weights are, read after them.
struct Record {
    u8* slot;
    int2 place;  // of the next record, in units of 16 bytes

    __device__ __forceinline__ void locate(const Problem& p, Position at, int segment) {
        const int k = at.span * SPAN_SEGMENTS + segment;
        const int* entry = p.places + (long long)at.strip * p.row_segments + k;
        place = at.strip < p.strips && k * SEGMENT_BLOCKS < p.blocks ? make_int2(__ldg(entry), __ldg(entry + 1)) : make_int2(0, 0);
    }
    // Begin to copy it; belongs to the group that is committed next. Returns where it will be.
    __device__ __forceinline__ const u8* ask(const Problem& p, int lane) {
        const int size = place.y - place.x;
        const u8* from = p.records + (long long)place.x * ALIGN;
        if (size * ALIGN > SLOT_BYTES) return from;
        const u32 to = shared_address(slot);
        if (lane < size) copy_async_16(to + lane * 16, from + lane * 16);
        if (lane + WARP < size) copy_async_16(to + (lane + WARP) * 16, from + (lane + WARP) * 16);
        return slot;
    }
};

// This lane's share (every second one) of a row's exceptions times N tokens; those that do not exist read the last.
template <int N>
__device__ __forceinline__ void multiply(float (&sum)[8], const RowExceptions& row, int j, const u16* x, int x_pitch,
                                         int tokens) {
    const float filler = row_filler(row.base);
    const u16* of_token[N];
#pragma unroll
    for (int k = 0; k < N; k++) of_token[k] = x + min(k, tokens - 1) * x_pitch;
    for (int e = row.begin + j; e < row.end; e += 4) {  // two at a time: their loads overlap
        const bool two = e + 2 < row.end;
        const u32 first = row.entries[e], second = row.entries[two ? e + 2 : e];
        const u32 c = exception_column(first), d = exception_column(second);
        const float v = exception_value(first) - filler, w = exception_value(second) - filler;
        u16 a[N], b[N];
#pragma unroll
        for (int k = 0; k < N; k++) a[k] = read_x(of_token[k] + c), b[k] = read_x(of_token[k] + d);
#pragma unroll
        for (int k = 0; k < N; k++) {
            sum[k] += v * from_bf16(a[k]);
            if (two) sum[k] += w * from_bf16(b[k]);
        }
    }
}

// Add the exceptions of a segment to its sums for eight tokens. Two lanes per row: lane = 2 row + j.
__device__ __forceinline__ void add_exceptions(float* sums, const u8* record, int lane, const u16* x, int x_pitch,
                                               int tokens) {
    const int row = lane / 2, j = lane % 2;
    const RowExceptions own(record, row);
    float sum[8] = {};
    if (tokens == 1)
        multiply<1>(sum, own, j, x, x_pitch, tokens);
    else if (tokens <= 4)
        multiply<4>(sum, own, j, x, x_pitch, tokens);
    else
        multiply<8>(sum, own, j, x, x_pitch, tokens);
    float* out = sums + row;
    if (tokens == 1) {
        const float both = sum[0] + __shfl_xor_sync(ALL_LANES, sum[0], 1);
        if (j == 0) *out += both;
        return;
    }
    out += 4 * j * SUM_PITCH;
#pragma unroll
    for (int k = 0; k < 4; k++) {  // lane j keeps tokens 4 j to 4 j + 3
        const float kept = j ? sum[k + 4] : sum[k], sent = j ? sum[k] : sum[k + 4];
        out[k * SUM_PITCH] += kept + __shfl_xor_sync(ALL_LANES, sent, 1);
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
#if SLICE
    barrier_sync(READY, THREADS);
#endif
    for (int round = 0; round < p.rounds; round++) {
        float sum[TILES][4] = {};
        const int first = place.span * SPAN_BLOCKS + segment * SEGMENT_BLOCKS;
        const int blocks = place.strip < p.strips ? p.blocks - first : 0;  // up to SEGMENT_BLOCKS, or more
        const u16* segment_x = p.x + first * BLOCK_COLS;
        const u16* at = segment_x + (long long)g * p.x_pitch + t * 16;
        __syncwarp();  // every lane is done with the record before
        const u8* record = next.ask(p, lane);
        place.advance(SPANS, p.spans);
        next.locate(p, place, segment);
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
        float* own = sums + (round % 2 * CONSUMERS + warp) * SUM;
        if (blocks > 0) {
            const float low = row_scale(record[BASES_AT + g]), high = row_scale(record[BASES_AT + g + 8]);
            float* out = own + 2 * t * SUM_PITCH + g;
#pragma unroll
            for (int n = 0; n < TILES; n++, out += 8 * SUM_PITCH) {
                out[0] = sum[n][0] * low;
                out[SUM_PITCH] = sum[n][1] * low;
                out[8] = sum[n][2] * high;
                out[SUM_PITCH + 8] = sum[n][3] * high;
            }
            __syncwarp();
#pragma unroll 1
            for (int n = 0; n * 8 < p.tokens; n++)
                add_exceptions(own + n * 8 * SUM_PITCH, record, lane, segment_x + (long long)n * 8 * p.x_pitch, p.x_pitch,
                               p.tokens - n * 8);
        } else {
            for (int i = lane; i < SUM; i += WARP) own[i] = 0;
        }
        barrier_arrive(FULL + round % 2, THREADS);
    }
}

struct Output {
    const u16* bias;
    u16* y;
    float* partial;  // of the first span of this slice
    int rows;
};

// Lane = (four tokens, row): add up the segments of each span, the spans of each strip, and write.
__device__ __forceinline__ void finish(const Problem& p, const Output& out, const float* sums) {
    const int tile = threadIdx.x / WARP - CONSUMERS, lane = threadIdx.x % WARP;
    const int row = lane % STRIP, token = tile * 8 + lane / STRIP * 4;
    Position place{(int)blockIdx.x, 0};
    float total[4] = {};
#if SLICE
    barrier_sync(READY, THREADS);
#endif
    for (int round = 0; round < p.rounds; round++) {
        barrier_sync(FULL + round % 2, THREADS);
        const float* in = sums + round % 2 * CONSUMERS * SUM + token * SUM_PITCH + row;
#pragma unroll 1
        for (int s = 0; s < SPANS && place.strip < p.strips; s++, in += SPAN_SEGMENTS * SUM) {
            const int r = place.strip * STRIP + row;
            const bool last = place.span + 1 == p.spans;
#pragma unroll
            for (int k = 0; k < 4; k++) {
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
        if (round + 2 < p.rounds) barrier_arrive(EMPTY + round % 2, THREADS);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
window_linear(const u8* __restrict__ weights,   // blocks of the `fast` layout
              const int* __restrict__ places, const u8* __restrict__ records,
              const u16* __restrict__ x,        // [tokens][x_pitch] bfloat16, zero from `cols` on
              const u16* __restrict__ bias,     // [rows] bfloat16 or null
              u16* __restrict__ y,              // [tokens][rows] bfloat16
              float* __restrict__ partial,      // [spans of a row][tokens][rows], where gridDim.y > 1
              int rows, int row_blocks, int row_segments, int x_pitch, int tokens) {
    extern __shared__ __align__(128) u8 shared[];
    u8* slots = shared + CONSUMERS * STAGES * STAGE_BYTES;
    float* sums = (float*)(slots + CONSUMERS * SLOT_BYTES);  // [2][CONSUMERS][TOKENS][SUM_PITCH]
    const int first_span = SLICE * blockIdx.y, first_block = first_span * SPAN_BLOCKS;
    Problem p;
    p.weights = weights + (long long)first_block * BLOCK_BYTES;
    p.places = places + first_span * SPAN_SEGMENTS;
    p.records = records;
    p.x = x + first_span * SPAN_COLS;
    p.x_pitch = x_pitch;
    p.tokens = tokens;
    p.strips = ceil_div(rows, STRIP);
    p.row_blocks = row_blocks;
    p.row_segments = row_segments;
    p.blocks = SLICE ? min(row_blocks - first_block, SLICE * SPAN_BLOCKS) : row_blocks;
    p.spans = ceil_div(p.blocks, SPAN_BLOCKS);
    p.rounds = ceil_div(ceil_div(p.strips - (int)blockIdx.x, gridDim.x) * p.spans, SPANS);
#if SLICE
    u16* slice = (u16*)(sums + 2 * CONSUMERS * SUM);  // [TOKENS][SLICE_PITCH]
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
    if (threadIdx.x < CONSUMERS * WARP)
        consume(p, shared, slots, sums);
    else
        finish(p, {bias, y, partial + (long long)first_span * tokens * rows, rows}, sums);
}
