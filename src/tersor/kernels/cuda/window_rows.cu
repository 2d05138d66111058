// Single rows of a matrix in the `fast` layout (window/layout.py): an embedding that shares its head's weight.
//
// A warp decodes 512 columns of one row, a segment, through one kilobyte of shared memory. Lane 4 b + t takes what
// lane (row % 8, t) of block b owns: 16 neighbouring columns, of which the fragment's registers hold two rows.
#include "exceptions.cuh"
#include "window_fragment.cuh"

constexpr int WARPS = 4;
constexpr int LANE_COLS = 16;

extern "C" __global__ void __launch_bounds__(WARPS* WARP)
window_decode_rows(const u8* __restrict__ blocks, const int* __restrict__ places, const u8* __restrict__ records,
            const long long* __restrict__ wanted,  // [gridDim.x]
            u16* __restrict__ out,                 // [gridDim.x][cols]
            int rows, int cols, int row_blocks, int segments) {
    __shared__ __align__(16) u16 stage[WARPS][SEGMENT_COLS];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int segment = blockIdx.y * WARPS + warp;
    if (segment >= segments) return;
    const int row = (int)min(max(wanted[blockIdx.x], 0ll), rows - 1ll), strip = row / TILE_ROWS, r = row % TILE_ROWS;
    const u8* record = records + (long long)places[(long long)strip * segments + segment] * ALIGN;
    const int block = min(segment * (SEGMENT_COLS / BLOCK_COLS) + lane / 4, row_blocks - 1);  // past the end: not written
    u32 a[STEPS][4];
    decode_block(a, blocks + ((long long)strip * row_blocks + block) * BLOCK_BYTES, r % 8 * 4 + lane % 4);
    const u32 base = record[BASES_AT + r] * 0x00800080u - CODE_BASE;  // from exponent 120 + code to base + code
    u16* own = stage[warp] + lane * LANE_COLS;
#pragma unroll
    for (int i = 0; i < STEPS; i += 2) {
        const bool low = r < 8;
        *(uint4*)(own + i * 4) =
            make_uint4((low ? a[i][0] : a[i][1]) + base, (low ? a[i][2] : a[i][3]) + base,
                       (low ? a[i + 1][0] : a[i + 1][1]) + base, (low ? a[i + 1][2] : a[i + 1][3]) + base);
    }
    const RowExceptions exceptions(record, r);
    __syncwarp();
    for (int e = exceptions.begin + lane; e < exceptions.end; e += WARP) {
        const u32 entry = exceptions.entries[e];
        stage[warp][exception_column(entry)] = exception_bits(entry);
    }
    __syncwarp();
    const int width = min(SEGMENT_COLS, cols - segment * SEGMENT_COLS);
    out += (long long)blockIdx.x * cols + segment * SEGMENT_COLS;
    if (cols % 8 == 0) {
        for (int c = lane * 8; c < width; c += WARP * 8) *(uint4*)(out + c) = *(const uint4*)(stage[warp] + c);
    } else {
        for (int c = lane; c < width; c += WARP) out[c] = stage[warp][c];
    }
}
