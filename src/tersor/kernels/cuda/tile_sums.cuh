// The sums of a warpgroup for 64 or 128 rows x TOKENS tokens, and what becomes of them at a tile's end.
#pragma once
#include "tile_parts.cuh"
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
    // The sums of a run's units from `unit` on to the end of their tile or of the run: to y, with the others' parts, or to the
    // tile's owner. Returns the unit after them. `row`, `token`: of the block in its cluster. `quiet` waits until nobody
    // reads operands any more; then `landing` is free.
    template <typename Quiet, int COUNT>
    __device__ __forceinline__ int hand_over(const Output& out, const Split& split, const Run& run, const Parts& parts,
                                             const Landing<COUNT>& landing, Quiet quiet, int unit, int row, int token) {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (int n = 0; n < WIDTHS; n++) wgmma_pin(of[m][n]);
        unit = uniform(unit);  // from which all is found anew: while the sums grow there are no registers to keep it in
        const int tile = unit / split.segments, tile_end = (tile + 1) * split.segments;
        if (unit > tile * split.segments) {
            leave(parts, run);
        } else {
            if (run.end < tile_end) {
                quiet();
                add_parts(parts, landing, run);
            }
            write(out, tile / split.token_tiles * CLUSTER_ROWS + row, tile % split.token_tiles * CLUSTER_TOKENS + token);
        }
        return min(run.end, tile_end);
    }

private:
    static constexpr int ROW_QUADS = TOKENS / 8;  // of a thread, in 64 rows
    __device__ __forceinline__ float* quad(int m, int j) { return &of[m][j / (WIDTH / 8)][j % (WIDTH / 8) * 4]; }

    __device__ __forceinline__ void leave(const Parts& parts, const Run& run) {
        const int cluster = run.cluster;
        float4* part = parts.of(cluster) + threadIdx.x % WARP;
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (int j = 0; j < ROW_QUADS; j++) {
                const float* own = quad(m, j);
                part[(m * ROW_QUADS + j) * WARP] = make_float4(own[0], own[1], own[2], own[3]);
            }
        parts.left(cluster);
    }
    // Of the clusters after this one.
    template <int COUNT>
    __device__ __forceinline__ void add_parts(const Parts& parts, const Landing<COUNT>& landing, const Run& run) {
        u32 parity = 0;
#pragma unroll 1
        for (int first = run.cluster + 1; first <= run.last_part; first += COUNT, parity ^= 1) {
            const int count = min(COUNT, run.last_part + 1 - first);
            parts.wait(first, count);
            parts.fetch(first, count, landing.at, landing.landed);
            mbarrier_wait(landing.landed, parity);
            u32 part = landing.at + threadIdx.x % WARP * 16;
#pragma unroll 1
            for (int i = 0; i < count; i++, part += PART_BYTES) add(part);
            __syncwarp();  // all have read them
        }
    }
    __device__ __forceinline__ void add(u32 part) {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (int j = 0; j < ROW_QUADS; j++) {
                const float4 more = load_shared_16(part + (m * ROW_QUADS + j) * (WARP * 16));
                float* own = quad(m, j);
                own[0] += more.x, own[1] += more.y, own[2] += more.z, own[3] += more.w;
            }
    }
    __device__ __forceinline__ void write(const Output& out, int row_tile, int token_tile) {
        const bool inside = TOKENS >= 128 && out.inside(row_tile, token_tile);  // smaller tiles have no registers to spare
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) {
            const float2 biases = out.biases(row_tile, Quad(threadIdx.x, m, 0));
#pragma unroll
            for (int j = 0; j < ROW_QUADS; j++) {
                const float* own = quad(m, j);
                const float4 four = make_float4(own[0], own[1], own[2], own[3]);
                const Quad at(threadIdx.x, m, j);
                if (inside)
                    out.write_whole(row_tile, token_tile, at, four, biases);
                else
                    out.write(row_tile, token_tile, at, four);
            }
        }
    }
};
