// How the work of products for many tokens is dealt out, and what becomes of a tile's sums (kernels/tile/split.py says
// the same).
//
// A *tile* is TALL rows x TOKENS tokens of y, one block's, times CLUSTER tiles of tokens where blocks work in clusters; a
// *unit* a stage (128 columns) of a tile. Units are counted with stages innermost, then tiles of tokens,
// then tiles of rows, and cluster b of B takes units begin(b) to begin(b + 1): nearly equal runs, so that nobody waits
// for a last wave. A run that holds all of a tile writes y; where a tile is cut, the cluster that begins it waits for what
// the others have of it (tile_parts.cuh).
#pragma once
#include "mbarrier.cuh"
#include "stage.cuh"

constexpr int TALL = 128;                       // rows of a tile
constexpr int STRIPS = TALL / TILE_ROWS;
static_assert(HALF_COLS == 64, "columns of an operand tile: one row of the swizzle");
constexpr int CONSUMERS = 4 * GROUPS;           // warps
constexpr int BLOCKS_OF_64 = TALL / 64 / GROUPS;  // rows of a tile that a warpgroup multiplies, in 64
constexpr int QUADS = TALL * TOKENS / 4;        // of a tile's sums: a thread's for two rows and two tokens
// By which a tile's tokens come, and go: 256 at a time at most. Two may overlap, and do the same there twice.
constexpr int COPIES = ceil_div(TOKENS, COPY_TOKENS), PIECES = ceil_div(TOKENS, STORED_TOKENS);
static_assert(TOKENS % 8 == 0 && COPY_TOKENS % 8 == 0 && STORED_TOKENS % 8 == 0, "operand tiles begin at multiples of eight rows");
__device__ __forceinline__ constexpr int copy_begin(int i) { return i * COPY_TOKENS < TOKENS - COPY_TOKENS ? i * COPY_TOKENS : TOKENS - COPY_TOKENS; }
__device__ __forceinline__ constexpr int piece_begin(int i) {
    return i * STORED_TOKENS < TOKENS - STORED_TOKENS ? i * STORED_TOKENS : TOKENS - STORED_TOKENS;
}

struct Split {
    int stages, token_tiles;    // stages of a row
    int units, chunk;           // runs begin at multiples of `chunk`, which divides units

    __device__ __forceinline__ Split(int rows, int tokens, int halves, int chunk)
        : stages(ceil_div(halves, 2)), token_tiles(ceil_div(tokens, TOKENS * CLUSTER)),
          units(ceil_div(rows, TALL) * token_tiles * stages), chunk(chunk) {}
    // Of a run's units from `unit` on, how many are in the same tile.
    __device__ __forceinline__ int in_tile(int unit, int end) const { return min(end - unit, stages - unit % stages); }
    // A unit's tile: of rows, and the cluster's of tokens.
    __device__ __forceinline__ int2 place(int unit) const {
        const int tile = unit / stages;
        return make_int2(tile / token_tiles, tile % token_tiles);
    }
    __device__ __forceinline__ int begin(int cluster, int clusters) const {
        return (u32)(units / chunk) * cluster / clusters * chunk;  // 32 bits are enough: kernels/tile/device.py
    }
};

struct Output {
    const TensorMap* y;  // [tokens][rows], STORED_TOKENS x 64 at a time
    const u16* bias;     // [rows] or null
    int rows;
    float scale;         // of the layout's sums

    // Of rows `row` and `row` + 8.
    __device__ __forceinline__ float2 biases(int row) const {
        if (!bias) return make_float2(0, 0);
        return make_float2(row < rows ? from_bf16(__ldg(bias + row)) : 0, row + 8 < rows ? from_bf16(__ldg(bias + row + 8)) : 0);
    }
};
