// The sums of a warpgroup for 64 or 128 rows x TOKENS tokens, and what becomes of them at a tile's end.
#pragma once
#include "tile_parts.cuh"
#include "wgmma.cuh"

constexpr int STORING = 3 * WARP;  // of a warpgroup, the thread that stores; others have other work

// Where a tile's sums are on their way to y: operand tiles of activations, which are as large, one for each 64 rows.
struct Staging {
    u32 first, apart;
    __device__ __forceinline__ u32 of(int block) const { return first + block * apart; }
};

struct Sums {
    float of[BLOCKS_OF_64][TOKENS / 2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (float& sum : of[m]) sum = 0;
    }
    // += 16 columns of the operand tiles of which a and x are descriptors.
    __device__ __forceinline__ void add(u32 a, u32 x) {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) wgmma_all(of[m], a + (m * A_BLOCK_BYTES >> 4), x);
    }
    // The sums of a run's units from `unit` on to the end of their tile or of the run: to y, with the others' parts, or to the
    // tile's owner. Returns the unit after them. `rank`: of the block in its cluster. `quiet` waits until nobody
    // reads operands any more; then `landing` is free. `staging` is free when this warp's product is done, and
    // for others when all warps are back.
    template <typename Quiet, int COUNT>
    __device__ __forceinline__ int hand_over(const Output& out, const Split& split, const Run& run, const Parts& parts,
                                             const Landing<COUNT>& landing, Quiet quiet, Staging staging, int unit, int rank) {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) wgmma_pin(of[m]);
        unit = uniform(unit);  // from which all is found anew: while the sums grow there are no registers to keep it in
        const int tile = unit / split.stages, tile_end = (tile + 1) * split.stages;
        if (unit > tile * split.stages) {
            leave(parts, run);
        } else {
            if (run.end < tile_end) {
                quiet();
                add_parts(parts, landing, run);
            }
            write(out, staging, tile / split.token_tiles, tile % split.token_tiles * CLUSTER + rank);
        }
        return min(run.end, tile_end);
    }

private:
    static constexpr int ROW_QUADS = TOKENS / 8;  // of a thread, in 64 rows
    __device__ __forceinline__ float* quad(int m, int j) { return &of[m][j * 4]; }

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
    // By way of shared memory: 16 bytes of each of 8 tokens at a time would keep the stores busy for longer than a tile's
    // multiplication leaves.
    __device__ __forceinline__ void write(const Output& out, Staging staging, int row_tile, int token_tile) {
        const int group = threadIdx.x / (4 * WARP), warp = threadIdx.x / WARP % 4, lane = threadIdx.x % WARP;
        barrier_sync(1, CONSUMERS * WARP);  // nobody reads operands any more, or parts that came there
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) {
            const int block = group * BLOCKS_OF_64 + m;
            const float2 bias = out.biases(row_tile * TALL + block * 64 + warp * 16 + lane / 4);
            // Matrices of 8 rows x 8 tokens: rows and the next eight, tokens and the next eight.
            const u32 to = staging.of(block) + (lane / 16 * 8 + lane % 8) * ROW_BYTES + ((warp * 2 + lane / 8 % 2 ^ lane % 8) << 4);
#pragma unroll
            for (int j = 0; j < ROW_QUADS; j += 2) {
                u32 pairs[4];  // of tokens
#pragma unroll
                for (int k = 0; k < 2 && j + k < ROW_QUADS; k++) {
                    const float* own = quad(m, j + k);
                    pairs[2 * k] = to_bf16x2(own[0] * out.scale + bias.x, own[1] * out.scale + bias.x);
                    pairs[2 * k + 1] = to_bf16x2(own[2] * out.scale + bias.y, own[3] * out.scale + bias.y);
                }
                if (j + 1 < ROW_QUADS)
                    store_matrices_transposed(to + j * (8 * ROW_BYTES), pairs[0], pairs[1], pairs[2], pairs[3]);
                else
                    store_matrices_transposed(to + j * (8 * ROW_BYTES), pairs[0], pairs[1]);
            }
        }
        shared_stores_done();
        barrier_sync(2 + group, 4 * WARP);
        if (threadIdx.x % (4 * WARP) == STORING) {
#pragma unroll
            for (int m = 0; m < BLOCKS_OF_64; m++) {
                const int block = group * BLOCKS_OF_64 + m;
#pragma unroll
                for (int i = 0; i < COPIES; i++)
                    tensor_store(*out.y, token_tile * TOKENS + i * COPY_STEP, row_tile * TALL + block * 64,
                                 staging.of(block) + i * (COPY_STEP * ROW_BYTES));
            }
            tensor_stores_read();
        }
        __syncwarp();
    }
};
