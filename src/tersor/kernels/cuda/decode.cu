// A matrix in one of the layouts (stage.cuh) back to row-major bfloat16, bit for bit.
//
// A block of threads decodes one segment, 16 rows x 512 columns, into shared memory, a warp per stage of 128 columns;
// puts the exceptions into their places there; and writes whole rows of it. Until it writes it may overlap its predecessor.
#include "row_scale.cuh"

constexpr int THREADS = 128, ROW_THREADS = THREADS / TILE_ROWS;
constexpr int PITCH = SEGMENT_COLS * 2 + 16;  // bytes; 16 more keep eight rows in different banks
constexpr int PIECES = SEGMENT_COLS / 8;      // of 16 bytes, in a row
static_assert(SEGMENT_COLS == THREADS / WARP * STAGE_COLS, "a warp per stage");

// Two weights of what Stage::half_bf16 gives, in units of 2^unit.
__device__ __forceinline__ u32 finished(u32 pair, int unit) {
#if LAYOUT == 0
    return pair;
#else
    return multiply_bf16x2(pair, (127 + WEIGHT_SHIFT + unit) * 0x00800080u);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
decode(const u8* __restrict__ weights, const int* __restrict__ places, const u8* __restrict__ records,
       u16* __restrict__ out,  // [rows][cols]
       int rows, int cols, int row_halves, int segments, int unit) {
    __shared__ __align__(128) u8 decoded[TILE_ROWS * PITCH];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int strip = blockIdx.x / segments, segment = blockIdx.x % segments;
    const u8* record = records + (long long)places[blockIdx.x] * ALIGN;
    // Past the end: decode the last again, write it nowhere.
    const int first = min(segment * SEGMENT_HALVES + warp * 2, (row_halves - 1) / 2 * 2);
    Stage stage;
    stage.open(weights + ((long long)strip * row_halves + first) * HALF_BYTES, lane);
    stage.begin_segment(record, g);
    u32 parts[2][STEPS][4];
#pragma unroll
    for (int h = 0; h < 2; h++) stage.half_bf16(parts[h], LAYOUT == 0 ? min(h, row_halves - 1 - first) : h);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u8* to = decoded + g * PITCH + (warp * STAGE_COLS + lane_column(h, t)) * 2;
#pragma unroll
        for (int i = 0; i < STEPS; i += 2) {
            const u32(&a)[4] = parts[h][i], (&c)[4] = parts[h][i + 1];
            *(uint4*)(to + i * 8) = make_uint4(a[0], a[2], c[0], c[2]);
            *(uint4*)(to + 8 * PITCH + i * 8) = make_uint4(a[1], a[3], c[1], c[3]);
        }
    }
    const int row = threadIdx.x / ROW_THREADS;
    const RowExceptions own(record, row);
    const u32 begin = shared_address(decoded + row * PITCH);
    __syncthreads();
    for (int e = own.begin + threadIdx.x % ROW_THREADS; e < own.end; e += ROW_THREADS) {
        const u32 entry = own.entries[e], place = begin + exception_column(entry) * 2;
        patch(place, entry, unpatched(place, true), true);
    }
    __syncthreads();
    const int height = min(TILE_ROWS, rows - strip * TILE_ROWS), width = min(SEGMENT_COLS, cols - segment * SEGMENT_COLS);
    out += (long long)strip * TILE_ROWS * cols + segment * SEGMENT_COLS;
    previous_done();  // which may still read what was in this memory before
    if (cols % 8 == 0) {
        const int piece = threadIdx.x % PIECES;
        if (piece * 8 < width)
#pragma unroll 4
            for (int r = threadIdx.x / PIECES; r < height; r += THREADS / PIECES) {
                const uint4 v = *(const uint4*)(decoded + r * PITCH + piece * 16);
                store_stream_16(out + (long long)r * cols + piece * 8, make_uint4(finished(v.x, unit), finished(v.y, unit),
                                                                                  finished(v.z, unit), finished(v.w, unit)));
            }
    } else {
        for (int r = 0; r < height; r++)
            for (int c = threadIdx.x; c < width; c += THREADS)
                out[(long long)r * cols + c] = finished(*(const u16*)(decoded + r * PITCH + c * 2), unit);
    }
}
