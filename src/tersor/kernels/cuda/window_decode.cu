// The `fast` layout (window/layout.py) back to a row-major bfloat16 matrix, bit for bit.
//
// A block of threads decodes one segment, 16 rows x 512 columns, into shared memory, a warp per 128 columns;
// overwrites the fillers with the exceptions there; and writes whole rows of it.
#include "exceptions.cuh"
#include "window_fragment.cuh"

constexpr int THREADS = 128, ROW_THREADS = THREADS / TILE_ROWS;
constexpr int WARP_BLOCKS = SEGMENT_COLS / BLOCK_COLS / (THREADS / WARP);
constexpr int PITCH = SEGMENT_COLS * 2 + 16;  // bytes; 16 more keep eight rows in different banks
constexpr int PIECES = SEGMENT_COLS / 8;      // of 16 bytes, in a row

extern "C" __global__ void __launch_bounds__(THREADS)
window_decode(const u8* __restrict__ weights, const int* __restrict__ places, const u8* __restrict__ records,
              u16* __restrict__ out,  // [rows][cols]
              int rows, int cols, int row_blocks, int segments) {
    __shared__ __align__(128) u8 stage[TILE_ROWS * PITCH];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int strip = blockIdx.x / segments, segment = blockIdx.x % segments;
    const u8* record = records + (long long)places[blockIdx.x] * ALIGN;
    u32 parts[WARP_BLOCKS][STEPS][4];
    const int first = segment * (SEGMENT_COLS / BLOCK_COLS) + warp * WARP_BLOCKS;
#pragma unroll
    for (int b = 0; b < WARP_BLOCKS; b++) {
        const int block = min(first + b, row_blocks - 1);  // past the end: decode the last again, write it nowhere
        decode_block(parts[b], weights + ((long long)strip * row_blocks + block) * BLOCK_BYTES, lane);
    }
    // From exponent 120 + code to base + code, in both halves of a pair at once.
    const u32 low = record[BASES_AT + g] * 0x00800080u - CODE_BASE;
    const u32 high = record[BASES_AT + g + 8] * 0x00800080u - CODE_BASE;
#pragma unroll
    for (int b = 0; b < WARP_BLOCKS; b++) {
        u8* to = stage + g * PITCH + (warp * WARP_BLOCKS + b) * BLOCK_COLS * 2 + t * 32;
#pragma unroll
        for (int i = 0; i < STEPS; i += 2) {
            const u32(&a)[4] = parts[b][i], (&c)[4] = parts[b][i + 1];
            *(uint4*)(to + i * 8) = make_uint4(a[0] + low, a[2] + low, c[0] + low, c[2] + low);
            *(uint4*)(to + 8 * PITCH + i * 8) = make_uint4(a[1] + high, a[3] + high, c[1] + high, c[3] + high);
        }
    }
    const int row = threadIdx.x / ROW_THREADS;
    const RowExceptions own(record, row);
    __syncthreads();
    for (int e = own.begin + threadIdx.x % ROW_THREADS; e < own.end; e += ROW_THREADS) {
        const u32 entry = own.entries[e];
        *(u16*)(stage + row * PITCH + exception_column(entry) * 2) = exception_bits(entry);
    }
    __syncthreads();
    const int height = min(TILE_ROWS, rows - strip * TILE_ROWS), width = min(SEGMENT_COLS, cols - segment * SEGMENT_COLS);
    out += (long long)strip * TILE_ROWS * cols + segment * SEGMENT_COLS;
    if (cols % 8 == 0) {
        const int piece = threadIdx.x % PIECES;
        if (piece * 8 < width)
#pragma unroll 4
            for (int r = threadIdx.x / PIECES; r < height; r += THREADS / PIECES)
                *(uint4*)(out + (long long)r * cols + piece * 8) = *(const uint4*)(stage + r * PITCH + piece * 16);
    } else {
        for (int r = 0; r < height; r++)
            for (int c = threadIdx.x; c < width; c += THREADS)
                out[(long long)r * cols + c] = *(const u16*)(stage + r * PITCH + c * 2);
    }
}
