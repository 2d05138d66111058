// Elements to the huffman codec's tiles, byte for byte what the NumPy reference writes.
//
// huffman_count  how often each symbol occurs; the block that ends last makes the code of it
// huffman_size   per tile: its streams' lengths in bytes, and its size; the block that ends last adds the sizes up
// huffman_write  the tiles
//
// Between the last two the host makes room: only then the sum of the sizes is known.
#include "huffman.cuh"
#include "huffman_book.cuh"
#include "sums.cuh"

constexpr int VECTOR = 16 / sizeof(Element);  // elements of a load

// What the kernels hand on, apart from what is stored; zeroed.
struct Work {
    u64 counts[SYMBOLS];
    u64 units;           // of all tiles, 16 bytes each
    u32 counted, sized;  // blocks that are done
    u32 codes[SYMBOLS];  // first bit lowest, length << 16
};
static_assert(sizeof(Work) == WORK_BYTES, "the host makes room for another");

// Whether this block is the last to get here; then it sees what the others wrote before. All threads call it.
__device__ __forceinline__ bool is_last_block(u32* done) {
    __threadfence();
    const bool first = threadIdx.x == 0;
    __syncthreads();
    const bool last = __syncthreads_or(first && atomicAdd(done, 1u) == gridDim.x - 1);
    __threadfence();
    return last;
}

__device__ __forceinline__ u32 symbol_in(const uint4& v, int i) {  // a constant
    constexpr int PER_WORD = 4 / sizeof(Element);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    return symbol_of((Element)(words[i / PER_WORD] >> i % PER_WORD * 8 * (int)sizeof(Element)));
}

// Whether all streams begin at multiples of 16 bytes, and end there.
__device__ __forceinline__ bool is_aligned(const Element* w, int cols) { return (u64)w % 16 == 0 && cols % VECTOR == 0; }

// use(symbol, i) for each symbol of a stream, i even or odd.
template <typename Use>
__device__ __forceinline__ void each_symbol(const Element* from, int width, bool aligned, Use use) {
    if (aligned) {
#pragma unroll 4
        for (int i = 0; i < width; i += VECTOR) {
            const uint4 v = __ldg((const uint4*)(from + i));
#pragma unroll
            for (int k = 0; k < VECTOR; k++) use(symbol_in(v, k), k);
        }
    } else {
#pragma unroll 8
        for (int i = 0; i < width; i++) use(symbol_of(__ldg(from + i)), i);
    }
}

union CountShared {
    u32 histogram[SYMBOLS][WARP];  // one per lane, each in a bank of its own: most weights share three exponents
    BookScratch book;
};

extern "C" __global__ void __launch_bounds__(BOOK_THREADS)
huffman_count(const Element* __restrict__ w, Work* work, u8* __restrict__ book,
              int blocks, int tail) {  // elements: blocks * 2^16 + tail
    __shared__ CountShared shared;
    const int thread = threadIdx.x;
    u32* all = &shared.histogram[0][0];
    for (int i = thread; i < SYMBOLS * WARP; i += BOOK_THREADS) all[i] = 0;
    __syncthreads();
    u32* own = all + thread % WARP;
    const u64 elements = ((u64)blocks << 16) + tail, before = (16 - (u64)w % 16) % 16 / sizeof(Element);
    const u64 head = before < elements ? before : elements, vectors = (elements - head) / VECTOR;
    const u64 rest = elements - vectors * VECTOR, step = (u64)gridDim.x * BOOK_THREADS;
    const u64 first = (u64)blockIdx.x * BOOK_THREADS + thread;
    const uint4* from = (const uint4*)(w + head);
#pragma unroll 4
    for (u64 i = first; i < vectors; i += step) {
        const uint4 v = __ldg(from + i);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) atomicAdd(own + symbol_in(v, k) * WARP, 1u);
    }
    for (u64 i = first; i < rest; i += step)
        atomicAdd(own + symbol_of(__ldg(w + (i < head ? i : i + vectors * VECTOR))) * WARP, 1u);
    __syncthreads();
    if (thread < SYMBOLS) {
        u32 n = 0;
#pragma unroll 8
        for (int lane = 0; lane < WARP; lane++) n += shared.histogram[thread][(lane + thread) % WARP];
        if (n) atomicAdd(work->counts + thread, (u64)n);
    }
    if (is_last_block(&work->counted)) make_book(shared.book, work->counts, book, work->codes);
}

__device__ __forceinline__ void load_codes(u32* shared, const u32* codes) {
    for (int i = threadIdx.x; i < SYMBOLS; i += blockDim.x) shared[i] = codes[i];
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
huffman_size(const Element* __restrict__ w, Work* work,
             u8* __restrict__ lengths,  // [tiles][32]
             u32* offsets,              // [tiles + 1], in units of 16 bytes
             int rows, int cols, int count) {
    __shared__ u32 code[SYMBOLS];
    load_codes(code, work->codes);
    const int number = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (number < count) {
        const Tile tile(number, rows, cols);
        int bits = 0;
        if (lane < tile.streams)
            each_symbol(tile.stream(w, lane, cols), tile.stream_width(lane), is_aligned(w, cols),
                        [&](u32 symbol, int) { bits += code[symbol] >> 16; });
        const int bytes = ceil_div(bits, 8);
        lengths[(long long)number * WARP + lane] = bytes;
        const int sum = running_sum(bytes, lane);
        if (lane == WARP - 1) offsets[number + 1] = (tile.body + align_up(sum)) / ALIGN;
    }
    if (!is_last_block(&work->sized)) return;
    const u64 units = add_up<WARPS>(offsets, count, [](u32 units) { return units; });
    if (threadIdx.x == 0) {
        offsets[0] = 0;
        work->units = units;
    }
}

// Raw bytes of four elements of 16 bits each.
__device__ __forceinline__ u32 raw_of_four(u32 low, u32 high) {
    if (KIND == BF16) {
        low = low >> 8 & 0x800080 | low & 0x7f007f;
        high = high >> 8 & 0x800080 | high & 0x7f007f;
    }
    return __byte_perm(low, high, 0x6420);
}

// A tile's raw bytes and the zeros behind them, by one warp.
__device__ __forceinline__ void write_raw(u8* to, const Tile& tile, const Element* corner, int cols, bool aligned) {
    const int lane = threadIdx.x % WARP, plane = tile.height * tile.width;
    if (RAW == 1 && aligned && tile.width % 16 == 0) {
        for (int i = lane * 16; i < plane; i += WARP * 16) {
            const uint4* from = (const uint4*)(corner + (long long)(i / tile.width) * cols + i % tile.width);
            const uint4 a = __ldg(from), b = __ldg(from + 1);
            *(uint4*)(to + i) = make_uint4(raw_of_four(a.x, a.y), raw_of_four(a.z, a.w), raw_of_four(b.x, b.y),
                                           raw_of_four(b.z, b.w));
        }
        return;
    }
    for (int r = 0; r < tile.height; r++)
        for (int c = lane; c < tile.width; c += WARP) {
            const u32 raw = raw_of(__ldg(corner + (long long)r * cols + c));
#pragma unroll
            for (int k = 0; k < RAW; k++) to[k * plane + r * tile.width + c] = raw >> (8 * k);
        }
    for (int i = RAW * plane + lane; i < tile.lengths; i += WARP) to[i] = 0;
}

constexpr int MOST_BYTES = WARP * STREAM * MAX_CODE_BITS / 8;  // of a tile's streams

// Streams meet within words, so they are put together in shared memory; what goes to memory is whole 16 bytes.
extern "C" __global__ void __launch_bounds__(WRITE_WARPS * WARP)
huffman_write(const Element* __restrict__ w, const Work* __restrict__ work, const u8* __restrict__ lengths,
              const u32* __restrict__ offsets,  // [tiles + 1]
              u8* __restrict__ tiles, int rows, int cols, int count) {
    __shared__ u32 code[SYMBOLS];
    __shared__ uint4 shared[WRITE_WARPS][MOST_BYTES / 16];
    load_codes(code, work->codes);
    const int number = blockIdx.x * WRITE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (number >= count) return;
    const Tile tile(number, rows, cols);
    const bool aligned = is_aligned(w, cols);
    uint4* streams = shared[threadIdx.x / WARP];
    u8* begin = tiles + (u64)offsets[number] * ALIGN;
    const int length = lengths[(long long)number * WARP + lane], end = running_sum(length, lane);
    const int pieces = ceil_div(__shfl_sync(ALL_LANES, end, WARP - 1), 16);
    for (int i = lane; i < pieces; i += WARP) streams[i] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    if (lane < tile.streams) {
        u32* at = (u32*)streams + (end - length) / 4;
        int have = (end - length) % 4 * 8;
        u64 bits = 0;
        each_symbol(tile.stream(w, lane, cols), tile.stream_width(lane), aligned, [&](u32 symbol, int i) {
            const u32 one = code[symbol];
            bits |= (u64)(one & 0xffff) << have;
            have += one >> 16;
            if (i % 2 && have >= 32) {  // 31 bits and two codes go into 64
                atomicOr(at++, (u32)bits);
                bits >>= 32;
                have -= 32;
            }
        });
        if (have > 0) atomicOr(at, (u32)bits);
        if (have > 32) atomicOr(at + 1, (u32)(bits >> 32));
    }
    __syncwarp();
    if (RAW) write_raw(begin, tile, tile.corner(w, cols), cols, aligned);
    if (lane < tile.body - tile.lengths) begin[tile.lengths + lane] = length;  // 0 behind the last stream's
    uint4* to = (uint4*)(begin + tile.body);
    for (int i = lane; i < pieces; i += WARP) to[i] = streams[i];
    if (number == count - 1 && lane < TAIL) ((u8*)(to + pieces))[lane] = 0;
}
