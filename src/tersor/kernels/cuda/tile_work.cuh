// How the work of products for many tokens is dealt out, and what becomes of a tile's sums (kernels/tile/split.py says
// the same).
//
// A *tile* is TALL rows x TOKENS tokens of y, one block's, times CLUSTER_ROWS and CLUSTER_TOKENS where blocks work in
// clusters; a *unit* a segment (512 columns) of a tile. Units are counted with segments innermost, then tiles of tokens,
// then tiles of rows, and cluster b of B takes units begin(b) to begin(b + 1): nearly equal runs, so that nobody waits
// for a last wave. A run that holds all of a tile writes y; where a tile is cut, the cluster that begins it waits for what
// the others have of it (tile_parts.cuh).
#pragma once
#include "ptx.cuh"

constexpr int TALL = 128;                       // rows of a tile
constexpr int STRIPS = TALL / TILE_ROWS;
constexpr int HALF_COLS = 64;                   // columns of a step: half a stage, one row of the swizzle
constexpr int SEGMENT_HALVES = SEGMENT_COLS / HALF_COLS;
constexpr int CONSUMERS = 4 * GROUPS;           // warps
constexpr int BLOCKS_OF_64 = TALL / 64 / GROUPS;  // rows of a tile that a warpgroup multiplies, in 64
constexpr int CLUSTER = CLUSTER_ROWS * CLUSTER_TOKENS;
constexpr int QUADS = TALL * TOKENS / 4;        // of a tile's sums: a thread's for two rows and two tokens

struct Split {
    int segments, token_tiles;  // segments of a row
    int units, chunk;           // runs begin at multiples of `chunk`, which divides units

    __device__ __forceinline__ int begin(int cluster, int clusters) const {
        return (u32)(units / chunk) * cluster / clusters * chunk;  // 32 bits are enough: kernels/tile/device.py
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
    // Whether all of a tile can be written by `write_whole`.
    __device__ __forceinline__ bool inside(int row_tile, int token_tile) const {
        return (row_tile + 1) * TALL <= rows && (token_tile + 1) * TOKENS <= tokens && rows % 2 == 0;
    }
    // Quads of a warp, which are 16 rows x 8 tokens: transposed, so that a lane has two rows of one token. `biases` are
    // those of rows `at.row` and `at.row` + 8.
    __device__ __forceinline__ void write_whole(int row_tile, int token_tile, Quad at, float4 sums, float2 biases) const {
        const int lane = threadIdx.x % WARP, row = row_tile * TALL + at.row - lane / 4 + lane % 4 * 2;
        const int token = token_tile * TOKENS + at.token - lane % 4 * 2 + lane / 4;
        u32* to = (u32*)(y + (long long)token * rows + row);
        to[0] = transposed(to_bf16x2(sums.x * scale + biases.x, sums.y * scale + biases.x));
        to[4] = transposed(to_bf16x2(sums.z * scale + biases.y, sums.w * scale + biases.y));
    }
    __device__ __forceinline__ float2 biases(int row_tile, Quad at) const {
        const int row = row_tile * TALL + at.row;
        if (!bias) return make_float2(0, 0);
        return make_float2(row < rows ? from_bf16(__ldg(bias + row)) : 0, row + 8 < rows ? from_bf16(__ldg(bias + row + 8)) : 0);
    }
};
