// How a tile is put together that several clusters cut between them.
//
// The cluster that has the tile's head, segment 0, owns it. The others leave their sums in `sums` and raise flags; the
// owner waits for these, adds the parts to its own sums in the order of the columns, so that the result does not depend on
// when blocks run, and writes y. A cluster goes on with at most one tile that another began: it has one part.
//
// A thread reads what the thread of its number wrote, in the block of its rank: there is a flag for every warp, and warps
// wait for warps. Flags are zero when a kernel begins, and when it ends (kernels/tile/flags.py says whose they are).
//
// Nobody waits in a circle: a cluster leaves its part first thing in its run, before it can wait for anybody, and waits
// for others last thing. Nor does anybody wait for blocks that find no room because of those who wait: owners wait for
// clusters of higher numbers, and these are given to blocks that are dispatched earlier (`Run`).
#pragma once
#include "tile_work.cuh"

// A cluster's units, and the last cluster that has a part of the tile in which they end. Kept in shared memory, since
// consumers have no registers for what they need seldom.
struct Run {
    int cluster, begin, end, last_part;

    __device__ __forceinline__ void find(const Split& split) {
        cluster = (gridDim.x - 1 - blockIdx.x) / CLUSTER;  // blocks are dispatched in the order of blockIdx
        const int clusters = gridDim.x / CLUSTER;
        begin = split.begin(cluster, clusters);
        end = split.begin(cluster + 1, clusters);
        last_part = cluster;
        const int tile_end = ceil_div(end, split.segments) * split.segments;
        while (last_part + 1 < clusters && split.begin(last_part + 1, clusters) < tile_end) last_part++;
    }
};

struct Parts {
    float4* sums;  // [clusters][CLUSTER][QUADS]
    u32* flags;    // [clusters][CLUSTER][CONSUMERS]

    // This thread's first quad of what the block of the same rank left; the next one is GROUPS * 128 on.
    __device__ __forceinline__ float4* of(int cluster) const {
        return sums + (long long)(cluster * CLUSTER + blockIdx.x % CLUSTER) * QUADS + threadIdx.x;
    }
    __device__ __forceinline__ u32* flag(int cluster) const {
        return flags + (cluster * CLUSTER + blockIdx.x % CLUSTER) * CONSUMERS + threadIdx.x / WARP;
    }
    // All that this warp has of the cluster's part has been stored.
    __device__ __forceinline__ void left(int cluster) const {
        __syncwarp();
        if (threadIdx.x % WARP == 0) signal(flag(cluster));
    }
    // Until it is there. Nobody raises the flag again before the next launch, so that it is lowered at once.
    __device__ __forceinline__ void wait(int cluster) const {
        u32* raised = flag(cluster);
        await(raised);
        if (threadIdx.x % WARP == 0) *raised = 0;
    }
};
