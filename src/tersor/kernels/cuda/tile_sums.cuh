// The sums of a warpgroup for 64 or 128 rows x TOKENS tokens, and what becomes of them at a tile's end.
#pragma once
#include "tile_parts.cuh"
#include "wgmma.cuh"

constexpr int STORING = 3 * WARP;  // of a warpgroup, the thread that stores; others have other work

// Where a tile's sums are on their way to y: two operand tiles of activations, one for each 64 rows. A kernel that has them
// elsewhere has a struct like this.
struct Staging {
    u32 first, apart;
    // Of a piece of 64 rows' sums.
    __device__ __forceinline__ u32 of(int block, int piece) const { return first + block * apart + piece_begin(piece) * ROW_BYTES; }
    // Until nobody needs what is there. All warps come by.
    __device__ __forceinline__ void await(int piece) const {
        if (piece == 0) barrier_sync(1, CONSUMERS * WARP);
    }
    // It will not be used.
    __device__ __forceinline__ void spare() const {}
};

struct Sums {
    float of[BLOCKS_OF_64][TOKENS / 2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++)
#pragma unroll
            for (float& sum : of[m]) sum = 0;
    }
    // += 16 columns of the operand tiles of which a and x are descriptors, or = where there are no `more` sums to add to.
    __device__ __forceinline__ void add(u32 a, u32 x, bool more = true) {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) wgmma_all(of[m], a + (m * A_BLOCK_BYTES >> 4), x, more);
    }
    // The sums of `stages` units: to y, with the others' parts, or, where they are not the tile's `head`, to its owner. `quiet`
    // waits until nobody reads operands any more; then `landing` is free. All must be settled, and then `staging` is free.
    template <typename Quiet, typename Place, int COUNT>
    __device__ __forceinline__ void hand_over(const Output& out, const Split& split, const Run& run, const Parts& parts,
                                              const Landing<COUNT>& landing, Quiet quiet, const Place& staging, int2 tile,
                                              int stages, bool head) {
#pragma unroll
        for (int m = 0; m < BLOCKS_OF_64; m++) wgmma_pin(of[m]);
        if (head) {
            if (stages < split.stages) {
                staging.spare();
                quiet();
                add_parts(parts, landing, run);
                barrier_sync(1, CONSUMERS * WARP);  // others' parts may have come to where this warp's sums are staged
            }
            write(out, staging, tile.x, tile.y);
        } else {
            staging.spare();
            leave(parts, run);
        }
    }
    // What remains to be done for sums that were handed over: they are on their way, and better waited for when there is other
    // work. Tell the owner that a `part` is there.
    __device__ __forceinline__ void settle_part(const Run& run, const Parts& parts, bool part) const { parts.left(run.cluster, part); }
    // Until all of the staging has been read, or its first two pieces, which may be all.
    __device__ __forceinline__ void settle_stores() const { stores_read<0>(); }
    __device__ __forceinline__ void settle_two() const {
        if constexpr (PIECES > 1) stores_read<PIECES - 2>();
    }

private:
    static constexpr int ROW_QUADS = TOKENS / 8;  // of a thread, in 64 rows
    template <int BUT>
    static __device__ __forceinline__ void stores_read() {
        if (threadIdx.x % (4 * WARP) == STORING) tensor_stores_read<BUT>();
        __syncwarp();
    }
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
    template <typename Place>
    __device__ __forceinline__ void write(const Output& out, const Place& staging, int row_tile, int token_tile) {
        const int group = threadIdx.x / (4 * WARP);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            staging.await(i);
            const int thread = thread_anew(), warp = thread / WARP % 4, lane = thread % WARP;
#pragma unroll
            for (int m = 0; m < BLOCKS_OF_64; m++) {
                const int block = group * BLOCKS_OF_64 + m;
                const float2 bias = out.biases(row_tile * TALL + block * 64 + warp * 16 + lane / 4);
                // Matrices of 8 rows x 8 tokens: rows and the next eight, tokens and the next eight.
                const u32 to = staging.of(block, i) + (lane / 16 * 8 + lane % 8) * ROW_BYTES +
                               ((warp * 2 + lane / 8 % 2 ^ lane % 8) << 4);
                const auto pairs = [&](int j) {
                    const float* own = quad(m, piece_begin(i) / 8 + j);
                    return make_uint2(to_bf16x2(own[0] * out.scale + bias.x, own[1] * out.scale + bias.x),
                                      to_bf16x2(own[2] * out.scale + bias.y, own[3] * out.scale + bias.y));
                };
#pragma unroll
                for (int j = 0; j + 1 < STORED_TOKENS / 8; j += 2) {
                    const uint2 first = pairs(j), second = pairs(j + 1);
                    store_matrices_transposed(to + j * (8 * ROW_BYTES), first.x, first.y, second.x, second.y);
                }
                constexpr int last = STORED_TOKENS / 8 - 1;
                if constexpr (last % 2 == 0) {
                    const uint2 alone = pairs(last);
                    store_matrices_transposed(to + last * (8 * ROW_BYTES), alone.x, alone.y);
                }
            }
            shared_stores_done();
            barrier_sync(2 + group, 4 * WARP);
            if (threadIdx.x % (4 * WARP) == STORING) {
#pragma unroll
                for (int m = 0; m < BLOCKS_OF_64; m++) {
                    const int block = group * BLOCKS_OF_64 + m;
                    tensor_store(*out.y, token_tile * TOKENS + piece_begin(i), row_tile * TALL + block * 64, staging.of(block, i));
                }
                tensor_stores_commit();
            }
            __syncwarp();
        }
    }
};
