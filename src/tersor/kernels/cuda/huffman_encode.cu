// Elements to the huffman codec's tiles, byte for byte what the NumPy reference writes.
//
// huffman_count  how often each symbol occurs
// huffman_size   per tile: its streams' lengths in bytes, and its size in units of 16 bytes
// huffman_write  the tiles
//
// Between the first two the host makes the code (256 symbols), between the last two it adds up the sizes.
#include "huffman.cuh"

constexpr int COUNT_THREADS = 512, COPIES = COUNT_THREADS / WARP;  // a histogram per warp: they seldom collide

extern "C" __global__ void __launch_bounds__(COUNT_THREADS)
huffman_count(const Element* __restrict__ w, u64* __restrict__ counts,  // [256], zeroed
              int blocks, int tail) {  // elements: blocks * 2^16 + tail
    __shared__ u32 histogram[COPIES][SYMBOLS];
    for (int i = threadIdx.x; i < COPIES * SYMBOLS; i += COUNT_THREADS) (&histogram[0][0])[i] = 0;
    __syncthreads();
    u32* own = histogram[threadIdx.x / WARP];
    for (int block = blockIdx.x; block <= blocks; block += gridDim.x) {
        const Element* from = w + ((long long)block << 16);
        const int n = block < blocks ? 1 << 16 : tail;
#pragma unroll 8
        for (int i = threadIdx.x; i < n; i += COUNT_THREADS) atomicAdd(own + symbol_of(__ldg(from + i)), 1u);
    }
    __syncthreads();
    for (int s = threadIdx.x; s < SYMBOLS; s += COUNT_THREADS) {
        u32 n = 0;
        for (int c = 0; c < COPIES; c++) n += histogram[c][s];
        if (n) atomicAdd(counts + s, (u64)n);
    }
}

// Code of a symbol (first bit lowest) in the low, its length in the high half.
__device__ __forceinline__ void load_codes(u32* shared, const u32* codes) {
    for (int i = threadIdx.x; i < SYMBOLS; i += blockDim.x) shared[i] = codes[i];
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
huffman_size(const Element* __restrict__ w, const u32* __restrict__ codes,
             u8* __restrict__ lengths,  // [tiles][32]
             int* __restrict__ sizes,   // [tiles], in units of 16 bytes
             int rows, int cols, int count) {
    __shared__ u32 code[SYMBOLS];
    load_codes(code, codes);
    const int number = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (number >= count) return;
    const Tile tile(number, rows, cols);
    int bits = 0;
    if (lane < tile.streams) {
        const int width = tile.stream_width(lane);
        const Element* from = w + (long long)(tile.row + lane / tile.streams_per_row) * cols + tile.col +
                              lane % tile.streams_per_row * STREAM;
#pragma unroll 8
        for (int i = 0; i < width; i++) bits += code[symbol_of(__ldg(from + i))] >> 16;
    }
    const int bytes = ceil_div(bits, 8);
    lengths[number * WARP + lane] = bytes;
    const int sum = running_sum(bytes, lane);
    if (lane == WARP - 1) sizes[number] = (tile.body + align_up(sum)) / ALIGN;
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
huffman_write(const Element* __restrict__ w, const u32* __restrict__ codes, const u8* __restrict__ lengths,
              const u32* __restrict__ offsets,  // [tiles + 1]
              u8* __restrict__ tiles,           // zeroed
              int rows, int cols, int count) {
    __shared__ u32 code[SYMBOLS];
    load_codes(code, codes);
    const int number = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (number >= count) return;
    const Tile tile(number, rows, cols);
    u8* begin = tiles + (u64)offsets[number] * ALIGN;
    const Element* corner = w + (long long)tile.row * cols + tile.col;
    const int plane = tile.height * tile.width;
    if (RAW)
        for (int r = 0; r < tile.height; r++)
            for (int c = lane; c < tile.width; c += WARP) {
                const u32 raw = raw_of(__ldg(corner + (long long)r * cols + c));
#pragma unroll
                for (int k = 0; k < RAW; k++) begin[k * plane + r * tile.width + c] = raw >> (8 * k);
            }
    const int length = lengths[number * WARP + lane];
    u8* at = begin + tile.body + running_sum(length, lane) - length;
    if (lane >= tile.streams) return;
    begin[tile.lengths + lane] = length;
    const int width = tile.stream_width(lane);
    const Element* from = corner + (long long)(lane / tile.streams_per_row) * cols + lane % tile.streams_per_row * STREAM;
    u64 bits = 0;
    int have = 0;
    for (int i = 0; i < width; i++) {
        const u32 one = code[symbol_of(__ldg(from + i))];
        bits |= (u64)(one & 0xffff) << have;
        have += one >> 16;
        while (have >= 8) {
            *at++ = bits;
            bits >>= 8;
            have -= 8;
        }
    }
    if (have) *at = bits;
}
