// The huffman codec (FORMAT.md, section 3): the decoding table in shared memory, and one stream.
//
// A table of 4096 entries, indexed by the next 12 bits of a stream, gives up to four symbols at once: at 2.6 bits a
// symbol it nearly always does, so a stream of 128 takes about 35 look-ups. An entry is two words:
//
//   x   symbols, first lowest, zero where there is none
//   y   bits 0..7: bits that they take, 1 to 12; from bit 8 on: 8 * how many they are
//
// Integer instructions are what limits decoding, so shift counts are used as they stand (shifts look at five bits only)
// and a word of symbols is stored after every look-up, full or not.
#pragma once
#include "ptx.cuh"

constexpr int TABLE = 1 << MAX_CODE_BITS;
constexpr int STREAMS_PER_ROW = TILE_COLS / STREAM;
constexpr int ROW_WORDS = STREAM / 4 + 3;  // 32-bit words of a stream in shared memory: 2 for noise, odd for the banks

// Inclusive sum over the lanes up to this one.
__device__ __forceinline__ int running_sum(int v, int lane) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const int left = __shfl_up_sync(ALL_LANES, v, step);
        v += lane >= step ? left : 0;
    }
    return v;
}

struct TableScratch {
    u16 single[TABLE];               // symbol | length << 8 of the first code
    u8 sorted[SYMBOLS];              // symbols in order of (length, symbol)
    int counts[SYMBOLS / WARP][WARP];  // per warp of symbols and length
    int limit[WARP], begin[WARP];    // per length: end of its codes, left-aligned; place in `sorted` minus first code
};

// Fill `table` from 256 code lengths. All threads of the block call it, 256 at least.
__device__ void build_table(uint2* table, TableScratch& s, const u8* __restrict__ book) {
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const int length = thread < SYMBOLS ? book[thread] : 0;
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
        const int limit = running_sum(count << spread, lane), place = running_sum(count, lane) - count;
        s.limit[lane] = limit;
        s.begin[lane] = place - ((limit - (count << spread)) >> spread);
    }
    __syncthreads();
    if (length) {
        int place = s.begin[length] + (s.limit[length - 1] >> (MAX_CODE_BITS - length)) + rank;
        for (int w = 0; w < warp; w++) place += s.counts[w][length];
        s.sorted[place] = thread;
    }
    __syncthreads();
    int limit[MAX_CODE_BITS];
#pragma unroll
    for (int k = 1; k < MAX_CODE_BITS; k++) limit[k] = s.limit[k];
#pragma unroll 4
    for (int i = thread; i < TABLE; i += blockDim.x) {
        const int v = __brev(i) >> (32 - MAX_CODE_BITS);  // codes begin with their highest bit
        int n = 1;
#pragma unroll
        for (int k = 1; k < MAX_CODE_BITS; k++) n += v >= limit[k];
        s.single[i] = s.sorted[s.begin[n] + (v >> (MAX_CODE_BITS - n))] | n << 8;
    }
    __syncthreads();
#pragma unroll 4
    for (int i = thread; i < TABLE; i += blockDim.x) {
        u32 symbols = 0;
        int count = 0, bits = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const u32 one = s.single[i >> bits];
            const int n = one >> 8;
            if (count == k && bits + n <= MAX_CODE_BITS) {
                symbols |= (one & 0xff) << (8 * k);
                count++;
                bits += n;
            }
        }
        table[i] = make_uint2(symbols, bits | count << 11);
    }
    __syncthreads();
}

__device__ __forceinline__ uint2 load_shared_8(u32 address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}
__device__ __forceinline__ void store_shared_4(u32 address, u32 v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

// Where a stream's bits come from: whole words, one after the other.
struct FromMemory {
    const u32 *next, *last;  // not read past `last`
    __device__ __forceinline__ u32 word() {
        const u32 v = __ldg(next);
        next += next < last;
        return v;
    }
};
struct FromShared {
    u32 next;  // address
    __device__ __forceinline__ u32 word() {
        u32 v;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(next));
        next += 4;
        return v;
    }
};

// Decode a stream whose first bit is bit `skip` of the first word, into `symbols` bytes (a multiple of 4) at `out`; up
// to 7 more are written. What lies behind the stream's end is noise. `table` and `out` are addresses of shared memory.
template <typename Words>
__device__ __forceinline__ void decode_stream(Words words, int skip, int symbols, u32 table, u32 out) {
    u32 low = words.word() >> skip, high = 0;  // the next `have` bits
    int have = 32 - skip;
    u32 coming = words.word();  // one word ahead, so that nobody waits for it
    u32 waiting = 0;            // symbols of an unfinished word
    u32 done = 0;               // bits of symbols
    const u32 stop = symbols * 8;
    while (done < stop) {
        if (have < 32) {
            low |= coming << have;
            high = __funnelshift_l(coming, 0, have);
            have += 32;
            coming = words.word();
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint2 entry = load_shared_8(table + (low << 3 & (TABLE - 1) << 3));
            low = __funnelshift_r(low, high, entry.y);
            high = __funnelshift_r(high, 0, entry.y);
            have -= entry.y & 0xff;
            const u32 full = waiting | __funnelshift_l(0, entry.x, done), rest = __funnelshift_l(entry.x, 0, done);
            store_shared_4(out + (done >> 3 & ~3u), full);
            const u32 before = done;
            done += entry.y >> 8;
            waiting = (before ^ done) & 32 ? rest : full;
        }
    }
    store_shared_4(out + (done >> 3 & ~3u), waiting);
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
};
