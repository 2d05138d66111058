// The `fast` layout (window/layout.py) back to a row-major bfloat16 matrix, bit for bit.
//
// A block of threads decodes one span, 16 rows x 1024 columns, into shared memory, a warp per 256 columns;
// overwrites the fillers with the exceptions there; and writes 512-byte pieces of rows.
#include "exceptions.cuh"
#include "window_fragment.cuh"

constexpr int WARPS = TILE_ROWS / RECORD_ROWS;
constexpr int WARP_COLS = SPAN_COLS / WARPS;
constexpr int PITCH = SPAN_COLS * 2 + 16;  // bytes; 16 more keep eight rows in different banks

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
window_decode(const u8* __restrict__ weights, const int* __restrict__ places,
              const u8* __restrict__ records, u16* __restrict__ out,  // [rows][cols]
              int rows, int cols, int row_blocks, int row_spans) {
    __shared__ __align__(128) u8 stage[TILE_ROWS * PITCH];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int strip = blockIdx.x / row_spans, span = blockIdx.x % row_spans;
    places += blockIdx.x * WARPS;
    auto base = [&](int r) { return records[(long long)places[r / RECORD_ROWS] * ALIGN + BASES_AT + r % RECORD_ROWS]; };
    // From exponent 120 + code to base + code, in both halves of a pair at once.
    const u32 low = base(g) * 0x00800080u - CODE_BASE;
    const u32 high = base(g + 8) * 0x00800080u - CODE_BASE;
    const int first = (span * SPAN_COLS + warp * WARP_COLS) / BLOCK_COLS;
#pragma unroll
    for (int b = 0; b < WARP_COLS / BLOCK_COLS; b++) {
        const int block = min(first + b, row_blocks - 1);  // past the end: decode the last again, write it nowhere
        Fragments part;
        part.load(weights + ((long long)strip * row_blocks + block) * BLOCK_BYTES, lane);
        u8* to = stage + g * PITCH + (warp * WARP_COLS + b * BLOCK_COLS) * 2 + t * 32;
#pragma unroll
        for (int i = 0; i < STEPS; i += 2) {
            *(uint4*)(to + i * 8) = make_uint4(part.a[i][0] + low, part.a[i][2] + low,
                                               part.a[i + 1][0] + low, part.a[i + 1][2] + low);
            *(uint4*)(to + 8 * PITCH + i * 8) = make_uint4(part.a[i][1] + high, part.a[i][3] + high,
                                                           part.a[i + 1][1] + high, part.a[i + 1][3] + high);
        }
    }
    const int own_row = threadIdx.x / LANES_PER_ROW, j = threadIdx.x % LANES_PER_ROW;
    const RowExceptions own(records + (long long)places[warp] * ALIGN, own_row % RECORD_ROWS);
    __syncthreads();
    for (int e = own.begin + j; e < own.end; e += LANES_PER_ROW)
        *(u16*)(stage + own_row * PITCH + own.column(e) * 2) = own.value(e) >> 16;
    __syncthreads();
    const int height = min(TILE_ROWS, rows - strip * TILE_ROWS), width = min(SPAN_COLS, cols - span * SPAN_COLS);
    out += (long long)strip * TILE_ROWS * cols + span * SPAN_COLS;
    if (cols % 8 == 0) {
        if (threadIdx.x * 8 < width)
#pragma unroll 4
            for (int r = 0; r < height; r++)
                *(uint4*)(out + (long long)r * cols + threadIdx.x * 8) = *(const uint4*)(stage + r * PITCH + threadIdx.x * 16);
    } else {
        for (int r = 0; r < height; r++)
            for (int c = threadIdx.x; c < width; c += WARPS * WARP)
                out[(long long)r * cols + c] = *(const u16*)(stage + r * PITCH + c * 2);
    }
}
