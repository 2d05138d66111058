// What the warps of cluster_linear hand on, in shared memory, and to whom.
//
//   weights      A_SLOTS stages, two operand tiles of 64 columns each
//   activations  X_SLOTS operand tiles of 64 columns
//
// Both are rings with a barrier `full` and a barrier `empty` per slot. Weights come by stages, since with every
// slot a decoder meets others, which takes it a good part of the time that decoding does.
//
// A cluster is CLUSTER blocks with the same rows and neighbouring tiles of tokens: they share weights. Each decodes
// STRIPS / CLUSTER of the strips and copies them to the others. So weights may be written when the consumers of all blocks
// have read the slot, which `a_empty` counts. `a_full` counts the strips decoded here, and the bytes of those copied from
// others: the first decoder says how many. At a tile's end, sums go out by way of what was read last, which is given
// back when they have been stored (cluster_linear.cu).
#pragma once
#include "mbarrier.cuh"
#include "tile_patches.cuh"

constexpr int OWN_STRIPS = STRIPS / CLUSTER, TURNS = DECODERS / OWN_STRIPS;  // decoders of a strip take turns by stages
static_assert(CLUSTER <= 2, "a block tells one other that it has its copies");
constexpr int COPIED = (STRIPS - OWN_STRIPS) * STRIP_BYTES;                  // of a stage of weights
static_assert(DECODERS == TURNS * OWN_STRIPS && TURNS <= A_SLOTS);

// When the block's barriers and its run are there, by all of its warps; the others' barriers are by `cluster_wait`, as `init`
// has made them visible.
__device__ __forceinline__ void all_begin() {
    __syncwarp();
    barrier_sync(0, (CONSUMERS + DECODERS) * WARP);
    cluster_arrive_relaxed();
}

constexpr int BARRIER_BYTES = 8 * (2 * (A_SLOTS + X_SLOTS) + CONSUMERS + 1);
struct Barriers {
    u32 a_full, a_empty, x_full, x_empty, landed;  // landed: [CONSUMERS]
    u32 copied;                                    // ends when the other block has all weights of a whole tile

    __device__ __forceinline__ Barriers(u32 begin)
        : a_full(begin), a_empty(a_full + A_SLOTS * 8), x_full(a_empty + A_SLOTS * 8), x_empty(x_full + X_SLOTS * 8),
          landed(x_empty + X_SLOTS * 8), copied(landed + CONSUMERS * 8) {}
    // For the other block of the cluster, which is `rank`.
    __device__ __forceinline__ void tell_copied(int rank) const {
        if constexpr (CLUSTER > 1) mbarrier_arrive_at(address_of_rank(copied, rank));
    }
    // Where lane `lane`, of the first CLUSTER, tells one block that its weights have been read.
    __device__ __forceinline__ u32 a_empty_of(int lane) const { return address_of_rank(a_empty, lane % CLUSTER); }
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < A_SLOTS; i++) mbarrier_init(a_full + i * 8, OWN_STRIPS);
        for (int i = 0; i < A_SLOTS; i++) mbarrier_init(a_empty + i * 8, CONSUMERS * CLUSTER);
        for (int i = 0; i < X_SLOTS; i++) mbarrier_init(x_full + i * 8, 1), mbarrier_init(x_empty + i * 8, CONSUMERS);
        for (int i = 0; i < CONSUMERS; i++) mbarrier_init(landed + i * 8, 1);
        mbarrier_init(copied, 1);
        mbarrier_init_done();
    }
};
