// The huffman codec (FORMAT.md, section 3): its code as a table, its streams, tiles and elements.
#pragma once
#include "lookup.cuh"
#include "sums.cuh"

constexpr int STREAMS_PER_ROW = TILE_COLS / STREAM;
constexpr int ROW_WORDS = STREAM / 4 + 3;  // 32-bit words of a stream in shared memory: 2 for noise, odd for the banks

struct TableScratch {
    Expansion of;
    u32 sorted[SYMBOLS];               // the used symbols in order of (length, symbol): with length << 8 | code << 16
    int counts[SYMBOLS / WARP][WARP];  // per warp of symbols and length
    int first[WARP], begin[WARP];      // per length: its first code, and that one's place in `sorted`
    int used;
};

// Fill `table` from 256 code lengths. All threads of the block call it, 256 at least. Lengths that make no code make
// some table all the same, one that always goes on.
__device__ __forceinline__ void build_table(uint2* table, TableScratch& s, const u8* __restrict__ book) {
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    int length = thread < SYMBOLS ? book[thread] : 0;
    if (length > MAX_CODE_BITS) length = 0;
    for (int i = thread; i < TABLE / 2; i += blockDim.x) ((u32*)s.of.single)[i] = 0x01000100;
    if (thread < SYMBOLS) s.counts[warp][lane] = 0;
    __syncwarp();
    int rank = 0;
    if (thread < SYMBOLS) {
        const u32 same = __match_any_sync(ALL_LANES, length);
        rank = __popc(same & ((1u << lane) - 1));
        if (rank == 0) s.counts[warp][length] = __popc(same);
    }
    __syncthreads();
    if (warp == 0) {  // lane = length
        int count = 0;
        if (lane >= 1 && lane <= MAX_CODE_BITS)
            for (int w = 0; w < SYMBOLS / WARP; w++) count += s.counts[w][lane];
        const int spread = MAX_CODE_BITS - min(lane, MAX_CODE_BITS);
        const int end = running_sum(count, lane);
        s.first[lane] = (running_sum(count << spread, lane) >> spread) - count;
        s.begin[lane] = end - count;
        if (lane == WARP - 1) s.used = end;
    }
    __syncthreads();
    if (length) {
        for (int w = 0; w < warp; w++) rank += s.counts[w][length];
        const u32 code = __brev(s.first[length] + rank) >> (32 - length);  // begins with its highest bit
        s.sorted[s.begin[length] + rank] = thread | length << 8 | code << 16;
    }
    __syncthreads();
    for (int i = warp; i < s.used; i += blockDim.x / WARP) {  // a warp per symbol: all that begins with its code
        const u32 one = s.sorted[i], length = one >> 8 & 0xff;
        for (int rest = lane; rest < TABLE >> length; rest += WARP) s.of.single[one >> 16 | rest << length] = one;
    }
    __syncthreads();
    expand_table(table, s.of);
    __syncthreads();
}

// Decode a stream whose first bit is bit `skip` of the first word, into `symbols` bytes (a multiple of 4) at `out`; up
// to 7 more are written. What lies behind the stream's end is noise. `table` and `out` are addresses of shared memory.
template <typename Words>
__device__ __forceinline__ void decode_stream(Words words, int skip, int symbols, u32 table, u32 out) {
    Bits<Words> bits(words, skip);
    Row<> row{out};
    const u32 stop = symbols * 8;
    while (row.done < stop) {
        bits.refill();
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint2 entry = bits.look_up(table);
            bits.take(entry.y);
            row.put(entry.x, symbol_bits_of(entry.y));
        }
    }
    row.finish();
}

__device__ __forceinline__ void decode_from_memory(const u8* at, const u32* last, int symbols, u32 table, u32 out) {
    const u64 address = (u64)at;
    decode_stream(FromMemory{(const u32*)(address & ~3ull), last}, (int)(address & 3) * 8, symbols, table, out);
}
__device__ __forceinline__ void decode_from_shared(u32 at, int symbols, u32 table, u32 out) {
    decode_stream(FromShared{at & ~3u}, (int)(at & 3) * 8, symbols, table, out);
}

__device__ constexpr int align_up(int n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }

// Elements by kind (KIND): how many raw bytes and bytes they have, and symbol + raw value -> bit pattern and back.
enum { BF16, F16, F32, F8 };
constexpr int RAW = KIND == F8 ? 0 : KIND == F32 ? 3 : 1;
template <int> struct ElementOf { typedef u16 type; };
template <> struct ElementOf<F32> { typedef u32 type; };
template <> struct ElementOf<F8> { typedef u8 type; };
typedef ElementOf<KIND>::type Element;

__device__ __forceinline__ Element join(u32 symbol, u32 raw) {
    if (KIND == BF16) return (raw & 0x80) << 8 | symbol << 7 | raw & 0x7f;
    if (KIND == F16) return symbol << 8 | raw;
    if (KIND == F32) return (raw & 0x800000) << 8 | symbol << 23 | raw & 0x7fffff;
    return symbol;
}
__device__ __forceinline__ u32 symbol_of(u32 v) {
    return KIND == BF16 ? v >> 7 & 0xff : KIND == F16 ? v >> 8 : KIND == F32 ? v >> 23 & 0xff : v;
}
__device__ __forceinline__ u32 raw_of(u32 v) {
    return KIND == BF16 ? v >> 8 & 0x80 | v & 0x7f : KIND == F32 ? v >> 8 & 0x800000 | v & 0x7fffff : v & 0xff;
}

// Where tile `number` lies in the matrix, and its parts in memory.
struct Tile {
    int row, col, height, width, streams_per_row, streams;
    int lengths, body;  // bytes from the tile's begin on

    __device__ __forceinline__ Tile(int number, int rows, int cols) {
        const int across = ceil_div(cols, TILE_COLS);
        row = number / across * TILE_ROWS;
        col = number % across * TILE_COLS;
        height = min(TILE_ROWS, rows - row);
        width = min(TILE_COLS, cols - col);
        streams_per_row = ceil_div(width, STREAM);
        streams = height * streams_per_row;
        lengths = align_up(RAW * height * width);
        body = lengths + align_up(streams);
    }
    __device__ __forceinline__ int stream_width(int stream) const {
        return min(STREAM, width - stream % streams_per_row * STREAM);
    }
    __device__ __forceinline__ const Element* corner(const Element* w, int cols) const {
        return w + (long long)row * cols + col;
    }
    __device__ __forceinline__ const Element* stream(const Element* w, int stream, int cols) const {
        return corner(w, cols) + (long long)(stream / streams_per_row) * cols + stream % streams_per_row * STREAM;
    }
};
