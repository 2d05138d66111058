// The huffman codec's tiles back to elements, bit for bit.
//
// huffman_decode       the whole matrix: one block of threads per multiprocessor builds the table once and goes through
//                      the tiles, a warp per tile, a lane per stream. A tile's streams are fetched to shared memory
//                      during the tile before, its raw bytes to registers; then the two meet: whole rows of 512 bytes
// huffman_decode_rows  single rows (an embedding's): a block of threads per row, the row's streams dealt to its warps
#include "huffman.cuh"

constexpr int SYMBOL_WORDS = TILE_ROWS * STREAMS_PER_ROW * ROW_WORDS;  // of one tile in shared memory

// Eight elements from eight symbols (two words) and their raw bytes, to 16 bytes: the two kinds that matter most.
__device__ __forceinline__ uint4 join_eight(u32 low, u32 high, uint2 raw) {
    u32 out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 symbols = i < 2 ? low : high, bytes = i < 2 ? raw.x : raw.y;
        if (KIND == BF16) {
            const u32 twice = __byte_perm(bytes, 0, i % 2 ? 0x3322 : 0x1100);
            const u32 exponents = __byte_perm(symbols, 0, i % 2 ? 0x4342 : 0x4140) << 7;
            out[i] = and_or(twice, 0x807f807fu, exponents);
        } else {
            out[i] = __byte_perm(bytes, symbols, i % 2 ? 0x7362 : 0x5140);
        }
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

__device__ __forceinline__ u32 raw_at(const u8* plane, int plane_bytes, int i) {
    u32 raw = 0;
#pragma unroll
    for (int k = 0; k < RAW; k++) raw |= (u32)plane[k * plane_bytes + i] << (8 * k);
    return raw;
}

// Where a tile's bytes are, in units of 16; empty behind the last tile.
struct Extent {
    u32 begin = 0, end = 0;

    __device__ __forceinline__ Extent(const u32* offsets, int number, int count) {
        if (number < count) begin = __ldg(offsets + number), end = __ldg(offsets + number + 1);
    }
};

// Fetch a tile's stream lengths and streams to `slot`, if they fit; returns whether they do.
__device__ __forceinline__ bool fetch_streams(u32 slot, const u8* tiles, Extent tile, int lengths, int lane) {
    const int size = (int)(tile.end - tile.begin) * ALIGN - lengths;
    if (tile.end == tile.begin || size > SLOT) return false;
    const u8* from = tiles + (u64)tile.begin * ALIGN + lengths;
    for (int i = lane * 16; i < size; i += WARP * 16) copy_async_16(slot + i, from + i);
    return true;
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1)
huffman_decode(const u8* __restrict__ tiles, const u32* __restrict__ offsets, const u8* __restrict__ book,
               Element* __restrict__ out,  // [rows][cols]
               int rows, int cols, int count) {
    extern __shared__ __align__(16) u32 shared[];
    uint2* table = (uint2*)shared;
    u32* all_symbols = (u32*)(table + TABLE);
    u8* slots = (u8*)(all_symbols + WARPS * SYMBOL_WORDS);  // [WARPS][2][SLOT + 16]: this tile's and the next one's
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32* symbols = all_symbols + warp * SYMBOL_WORDS;
    const u8* slot = slots + warp * 2 * (SLOT + 16);
    int turn = 0;  // offset of the slot of this tile
    const u32 table_at = shared_address(table), own_at = shared_address(symbols + lane * ROW_WORDS);
    const u32 slot_at = shared_address(slot);
    const u32* last = (const u32*)(tiles + (u64)offsets[count] * ALIGN + ALIGN) - 1;
    const int step = gridDim.x * WARPS;
    int number = warp * gridDim.x + blockIdx.x;  // neighbours on different multiprocessors: few tiles still fill all
    Extent extent(offsets, number, count), next(offsets, number + step, count);
    bool fetched = fetch_streams(slot_at, tiles, extent, Tile(number, rows, cols).lengths, lane);
    copy_async_commit();
    build_table(table, *(TableScratch*)all_symbols, book);
    for (; number < count; number += step) {
        const Tile tile(number, rows, cols);
        const u8* from = tiles + (u64)extent.begin * ALIGN;
        const bool whole = RAW == 1 && tile.width == TILE_COLS && tile.height == TILE_ROWS && cols % 8 == 0;
        const uint2* raw = (const uint2*)from + lane;  // of eight elements in each row
        uint2 bytes[TILE_ROWS];  // asked for before the streams are decoded
        if (whole) {
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++) bytes[r] = load_stream_8(raw + r * (TILE_COLS / 8));
        }
        const Extent after(offsets, number + 2 * step, count);
        const int other = SLOT + 16 - turn;
        const bool next_fetched = fetch_streams(slot_at + other, tiles, next, Tile(number + step, rows, cols).lengths, lane);
        copy_async_commit();
        copy_async_wait<1>();
        __syncwarp();
        int length = 0;
        if (lane < tile.streams) length = fetched ? slot[turn + lane] : from[tile.lengths + lane];
        const int at = tile.body + running_sum(length, lane) - length;
        if (lane < tile.streams) {
            const int width = tile.stream_width(lane);
            if (fetched)
                decode_from_shared(slot_at + turn + at - tile.lengths, width, table_at, own_at);
            else
                decode_from_memory(from + at, last, width, table_at, own_at);
        }
        __syncwarp();
        extent = next, next = after, fetched = next_fetched, turn = other;
        Element* to = out + (long long)tile.row * cols + tile.col;
        if (whole) {
            const u32* pair = symbols + lane / 16 * ROW_WORDS + lane % 16 * 2;
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++, pair += STREAMS_PER_ROW * ROW_WORDS)
                *(uint4*)(to + (long long)r * cols + lane * 8) = join_eight(pair[0], pair[1], bytes[r]);
        } else {
            for (int r = 0; r < tile.height; r++) {
                const u8* row_symbols = (const u8*)(symbols + r * tile.streams_per_row * ROW_WORDS);
                for (int c = lane; c < tile.width; c += WARP)
                    to[(long long)r * cols + c] = join(row_symbols[c / STREAM * ROW_WORDS * 4 + c % STREAM],
                                                       raw_at(from, tile.height * tile.width, r * tile.width + c));
            }
        }
        __syncwarp();
    }
}

extern "C" __global__ void __launch_bounds__(ROW_WARPS * WARP)
huffman_decode_rows(const u8* __restrict__ tiles, const u32* __restrict__ offsets, const u8* __restrict__ book,
                    const long long* __restrict__ wanted,  // [wanted_rows]
                    Element* __restrict__ out,             // [wanted_rows][cols]
                    int wanted_rows, int rows, int cols, int count) {
    extern __shared__ __align__(16) u32 shared[];
    uint2* table = (uint2*)shared;
    u32* all_symbols = (u32*)(table + TABLE);
    build_table(table, *(TableScratch*)all_symbols, book);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int across = ceil_div(cols, TILE_COLS), streams = ceil_div(cols, STREAM);
    const int share = min(WARP, ceil_div(streams, ROW_WARPS));  // of a warp at a time
    u32* symbols = all_symbols + warp * WARP * ROW_WORDS;
    const u32* last = (const u32*)(tiles + (u64)offsets[count] * ALIGN + ALIGN) - 1;
    for (int i = blockIdx.x; i < wanted_rows; i += gridDim.x) {
        const int row = (int)min(max(wanted[i], 0ll), rows - 1ll), r = row % TILE_ROWS;
        for (int first = warp * share; first < streams; first += ROW_WARPS * share) {
            const int stream = first + lane;
            if (lane < share && stream < streams) {
                const int number = row / TILE_ROWS * across + stream / STREAMS_PER_ROW;
                const Tile tile(number, rows, cols);
                const u8* begin = tiles + (u64)__ldg(offsets + number) * ALIGN;
                const int own = r * tile.streams_per_row + stream % STREAMS_PER_ROW;
                int at = tile.body;
#pragma unroll 8
                for (int k = 0; k < own; k++) at += begin[tile.lengths + k];
                decode_from_memory(begin + at, last, tile.stream_width(own), shared_address(table),
                                   shared_address(symbols + lane * ROW_WORDS));
            }
            __syncwarp();
            for (int k = 0; k < share && first + k < streams; k++) {
                const int number = row / TILE_ROWS * across + (first + k) / STREAMS_PER_ROW;
                const Tile tile(number, rows, cols);
                const u8* begin = tiles + (u64)__ldg(offsets + number) * ALIGN;
                const int c = (first + k) % STREAMS_PER_ROW * STREAM, width = min(STREAM, tile.width - c);
#pragma unroll 4
                for (int e = lane; e < width; e += WARP)
                    out[(long long)i * cols + tile.col + c + e] =
                        join(((const u8*)(symbols + k * ROW_WORDS))[e],
                             raw_at(begin, tile.height * tile.width, r * tile.width + c + e));
            }
            __syncwarp();
        }
    }
}
