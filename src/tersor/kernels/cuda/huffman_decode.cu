// The huffman codec's tiles back to elements, bit for bit.
//
// huffman_decode       whole matrices, one or several: one block of threads per multiprocessor takes an equal share of
//                      all tiles, which lie in one matrix or two, builds the table of each and goes through the tiles,
//                      a warp per tile, a lane per stream. A tile's streams are fetched to shared memory during the
//                      tile before, its raw bytes to registers; then the two meet: whole rows of 512 bytes
// huffman_decode_rows  single rows (an embedding's): a block of threads per row, the row's streams dealt to its warps
#include "huffman.cuh"
#include "join.cuh"

constexpr int SYMBOL_WORDS = TILE_ROWS * STREAMS_PER_ROW * ROW_WORDS;  // of one tile in shared memory
static_assert(sizeof(TableScratch) <= WARPS * SYMBOL_WORDS * 4, "the table is made where symbols will be");

// Eight elements from eight symbols (two words) and their raw bytes, to 16 bytes: the two kinds that matter most.
__device__ __forceinline__ uint4 join_eight(u32 low, u32 high, uint2 raw) {
    return KIND == BF16 ? join_eight_bf16(low, high, raw) : join_eight_f16(low, high, raw);
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

struct Matrix {
    const u8* tiles;
    const u32* offsets;
    const u8* book;
    Element* out;  // [rows][cols]
    int rows, cols, count, before;  // tiles: its own, and of the matrices before it
};
struct Matrices {
    Matrix at[MATRICES];
    int count, tiles;
};
static_assert(sizeof(Matrices) == MATRICES_BYTES, "the host's structure is another");

// The raw bytes of a whole tile, eight elements per row and lane.
struct Raw {
    uint2 rows[TILE_ROWS];

    __device__ __forceinline__ void fetch(const u8* tile, int lane) {
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++) rows[r] = load_stream((const uint2*)tile + lane + r * (TILE_COLS / 8));
    }
};

// Whether a tile's raw bytes and rows are whole sixteen bytes for each lane.
__device__ __forceinline__ bool is_whole(const Tile& tile, int cols) {
    return RAW == 1 && tile.width == TILE_COLS && tile.height == TILE_ROWS && cols % 8 == 0;
}

// The tiles first, first + stride, ... before `stop` of a matrix, by one warp; the table is built on the way.
__device__ __forceinline__ void decode_tiles(const Matrix& m, int first, int stride, int stop, uint2* table,
                                             TableScratch& scratch, u32* symbols, const u8* slot) {
    const int lane = threadIdx.x % WARP;
    const u8* tiles = m.tiles;
    const u32* offsets = m.offsets;
    const u32 table_at = shared_address(table), own_at = shared_address(symbols + lane * ROW_WORDS);
    const u32 slot_at = shared_address(slot);
    int turn = 0;  // offset of the slot of this tile
    int number = first;
    Extent extent(offsets, number, stop), next(offsets, number + stride, stop);
    bool fetched = fetch_streams(slot_at, tiles, extent, Tile(number, m.rows, m.cols).lengths, lane);
    copy_async_commit();
    Raw raw;
    if (number < stop && is_whole(Tile(number, m.rows, m.cols), m.cols))
        raw.fetch(tiles + (u64)extent.begin * ALIGN, lane);
    const u32* last = (const u32*)(tiles + (u64)offsets[m.count] * ALIGN + ALIGN) - 1;
    build_table(table, scratch, m.book);
    for (; number < stop; number += stride) {
        const Tile tile(number, m.rows, m.cols);
        const u8* from = tiles + (u64)extent.begin * ALIGN;
        const Extent after(offsets, number + 2 * stride, stop);
        const int other = SLOT + 16 - turn;
        const bool next_fetched =
            fetch_streams(slot_at + other, tiles, next, Tile(number + stride, m.rows, m.cols).lengths, lane);
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
        if (EARLY) previous_done();
        Element* to = m.out + (long long)tile.row * m.cols + tile.col;
        if (is_whole(tile, m.cols)) {
            const u32* pair = symbols + lane / 16 * ROW_WORDS + lane % 16 * 2;
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++, pair += STREAMS_PER_ROW * ROW_WORDS)
                store_stream_16(to + (long long)r * m.cols + lane * 8, join_eight(pair[0], pair[1], raw.rows[r]));
        } else {
            for (int r = 0; r < tile.height; r++) {
                const u8* row_symbols = (const u8*)(symbols + r * tile.streams_per_row * ROW_WORDS);
                for (int c = lane; c < tile.width; c += WARP)
                    to[(long long)r * m.cols + c] = join(row_symbols[c / STREAM * ROW_WORDS * 4 + c % STREAM],
                                                         raw_at(from, tile.height * tile.width, r * tile.width + c));
            }
        }
        extent = next, next = after, fetched = next_fetched, turn = other;
        if (number + stride < stop && is_whole(Tile(number + stride, m.rows, m.cols), m.cols))
            raw.fetch(tiles + (u64)extent.begin * ALIGN, lane);  // before the streams are decoded
        __syncwarp();
    }
    copy_async_wait<0>();
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1)
huffman_decode(const __grid_constant__ Matrices matrices) {
    extern __shared__ __align__(16) u32 shared[];
    uint2* table = (uint2*)shared;
    u32* all_symbols = (u32*)(table + TABLE);
    u8* slots = (u8*)(all_symbols + WARPS * SYMBOL_WORDS);  // [WARPS][2][SLOT + 16]: this tile's and the next one's
    const int warp = threadIdx.x / WARP;
    const int begin = (int)((long long)matrices.tiles * blockIdx.x / gridDim.x);
    const int end = (int)((long long)matrices.tiles * (blockIdx.x + 1) / gridDim.x);
    let_next_begin();
    if (!EARLY) previous_done();
    for (int i = 0; i < matrices.count; i++) {
        const Matrix& m = matrices.at[i];
        const int first = max(begin - m.before, 0), stop = min(end - m.before, m.count);
        if (first >= stop) continue;
        __syncthreads();  // the table's scratch is where symbols are
        decode_tiles(m, first + warp, WARPS, stop, table, *(TableScratch*)all_symbols,
                     all_symbols + warp * SYMBOL_WORDS, slots + warp * 2 * (SLOT + 16));
    }
    previous_done();  // whoever waits for this kernel waits for its predecessor too
}

extern "C" __global__ void __launch_bounds__(ROW_WARPS * WARP, 2)
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
