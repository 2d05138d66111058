// How tile_linear's work is dealt out, and what becomes of a tile's sums (kernels/tile/split.py says the same).
//
// A *tile* is TALL rows x TOKENS tokens of y; a *unit* a segment (512 columns) of a tile. Units are counted with
// segments innermost, then tiles of tokens, then tiles of rows, and block b of B takes units begin(b) to begin(b + 1):
// nearly equal runs, so that nobody waits for a last wave. A run that holds all of a tile writes y. Otherwise the tile
// is cut: its blocks leave sums in `partial`, which tile_combine adds in the order of the columns. A block has at most
// two such parts: that of a tile begun before it (number 2 b), that of a tile left to the next (2 b + 1).
#pragma once
#include "ptx.cuh"

constexpr int TALL = 128;                       // rows of a tile
constexpr int STRIPS = TALL / TILE_ROWS;
constexpr int HALF_COLS = 64;                   // columns of a step: half a stage, one row of the swizzle
constexpr int SEGMENT_HALVES = SEGMENT_COLS / HALF_COLS;
constexpr int CONSUMERS = 4 * GROUPS;           // warps
constexpr int BLOCKS_OF_64 = TALL / 64 / GROUPS;  // rows of a tile that a warpgroup multiplies, in 64
constexpr int QUADS = TALL * TOKENS / 4;        // of a tile's sums: a thread's for two rows and two tokens

struct Split {
    int segments, token_tiles;  // segments of a row
    int units, chunk;           // runs begin at multiples of `chunk`, which divides units

    __device__ __forceinline__ int begin(int block, int blocks) const {
        return (int)((long long)(units / chunk) * block / blocks) * chunk;
    }
};

// Where sums quad (m, j) of a consumer thread belongs: rows `row` and `row` + 8 of y, tokens `token` and `token` + 1.
struct Quad {
    int row, token;
    __device__ __forceinline__ Quad(int thread, int m, int j) {
        const int group = thread / 128, warp = thread / WARP % 4, lane = thread % WARP;
        row = (group * BLOCKS_OF_64 + m) * 64 + warp * 16 + lane / 4;
        token = j * 8 + lane % 4 * 2;
    }
};

struct Output {
    const u16* bias;  // [rows] or null
    u16* y;           // [tokens][rows]
    int rows, tokens;
    float scale;      // of the layout's sums

    __device__ __forceinline__ void write(int row, int token, float first, float second) const {
        if (row >= rows) return;
        const float b = bias ? from_bf16(__ldg(bias + row)) : 0.f;
        u16* to = y + (long long)token * rows + row;
        if (token < tokens) to[0] = to_bf16(first * scale + b);
        if (token + 1 < tokens) to[rows] = to_bf16(second * scale + b);
    }
    __device__ __forceinline__ void write(int row_tile, int token_tile, Quad at, float4 sums) const {
        const int row = row_tile * TALL + at.row, token = token_tile * TOKENS + at.token;
        write(row, token, sums.x, sums.y);
        write(row + 8, token, sums.z, sums.w);
    }
};
