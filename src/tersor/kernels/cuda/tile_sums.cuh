// The sums of a warpgroup for 64 or 128 rows x TOKENS tokens, and what becomes of them at a tile's end.
#pragma once
#include "tile_work.cuh"
#include "wgmma.cuh"

struct Sums {
    float of[BLOCKS_OF_64][WIDTHS][WIDTH / 2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) of[m][i / (WIDTH / 2)][i % (WIDTH / 2)] = 0;
    }
    // += 16 columns of the operand tiles of which a and x are descriptors.
    __device__ __forceinline__ void add(u32 a, u32 x) {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (int n = 0; n < WIDTHS; n++)
                wgmma(of[m][n], a + (m * 64 * ROW_BYTES >> 4), x + (n * WIDTH * ROW_BYTES >> 4));
    }
    // To y if the block had the `whole` of tile (row_tile, token_tile), else to `part`, which tile_combine reads.
    __device__ __forceinline__ void hand_over(const Output& out, float4* part, bool whole, int row_tile, int token_tile) {
        const bool inside = TOKENS >= 128 && out.inside(row_tile, token_tile);  // smaller tiles have no registers to spare
        part += threadIdx.x;
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) {
            const float2 biases = out.biases(row_tile, Quad(threadIdx.x, m, 0));
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++) {
                float(&own)[WIDTH / 2] = of[m][j / (WIDTH / 8)];
                if (j % (WIDTH / 8) == 0) wgmma_pin(own);
                const int i = j % (WIDTH / 8) * 4;
                const float4 four = make_float4(own[i], own[i + 1], own[i + 2], own[i + 3]);
                const Quad at(threadIdx.x, m, j);
                if (!whole)
                    part[(m * (TOKENS / 8) + j) * GROUPS * 128] = four;
                else if (inside)
                    out.write_whole(row_tile, token_tile, at, four, biases);
                else
                    out.write(row_tile, token_tile, at, four);
            }
        }
    }
};
