// How a tile is put together that several clusters cut between them.
//
// The cluster that has the tile's head, stage 0, owns it. The others leave their sums in `sums` and raise flags; the
// owner waits for these, adds the parts to its own sums in the order of the columns, so that the result does not depend on
// when blocks run, and writes y. A cluster goes on with at most one tile that another began: it has one part.
//
// A warp reads what the warp of its number wrote, in the block of its rank: there is a flag for every warp, and warps wait
// for warps. Flags are zero when a kernel begins, and when it ends (kernels/tile/flags.py says whose they are). Parts come
// by bulk copies, as many at a time as have room where operands were: nobody needs those any more.
//
// Nobody waits in a circle: a cluster leaves its part first thing in its run, before it can wait for anybody, and waits
// for others last thing. Nor does anybody wait for blocks that find no room because of those who wait. All of a launch find
// room together on a GPU that is free; beside other kernels, owners wait for clusters that have parts of their tiles, and these are
// given to blocks of lower numbers (`Run::dispatched`), which every GPU so far dispatches earlier, although nobody promises it.
#pragma once
#include "mbarrier.cuh"
#include "tile_work.cuh"

constexpr int WARP_QUADS = QUADS / (CONSUMERS * WARP);  // of a lane
constexpr int PART_BYTES = WARP_QUADS * WARP * 16;      // of a warp

// A cluster's units, and the last cluster that has a part of the tile in which they end. Kept in shared memory, since
// consumers have no registers for what they need seldom.
struct Run {
    int cluster, begin, end, last_part;
    int later;  // where another run begins, of blocks that are dispatched after most others; or less than 0

    // Which is dispatched as the `place`-th: kernels/tile/split.py, `Split.dispatched`.
    static __device__ __forceinline__ int dispatched(int place, int period) {
        const int of_kind = gridDim.x / CLUSTER / period;
        return (of_kind - 1 - place % of_kind) * period + period - 1 - place / of_kind;
    }
    __device__ __forceinline__ void find(const Split& split, int period) {
        const int clusters = gridDim.x / CLUSTER;
        cluster = dispatched(blockIdx.x / CLUSTER, period);
        begin = split.begin(cluster, clusters);
        end = split.begin(cluster + 1, clusters);
        // The last one that begins before the tile's end; units are dealt out in chunks.
        const int chunks = ceil_div(end, split.stages) * split.stages / split.chunk;
        last_part = ((u32)chunks * clusters - 1) / (u32)(split.units / split.chunk);
        later = -1;
        if constexpr (CLUSTER > 1) {
            const int place = clusters - 1 - (int)blockIdx.x / CLUSTER;
            if (2 * place >= clusters) later = split.begin(dispatched(place, period), clusters);
        }
    }
};

struct Parts {
    float4* sums;  // [clusters][CLUSTER][CONSUMERS][WARP_QUADS][WARP]
    u32* flags;    // [clusters][CLUSTER][CONSUMERS]

    static __device__ __forceinline__ int number(int cluster) {
        return (cluster * CLUSTER + blockIdx.x % CLUSTER) * CONSUMERS + threadIdx.x / WARP;
    }
    // What this warp of the block of the same rank left.
    __device__ __forceinline__ float4* of(int cluster) const { return sums + (long long)number(cluster) * (WARP_QUADS * WARP); }
    __device__ __forceinline__ u32* flag(int cluster) const { return flags + number(cluster); }
    // All that this warp has of the cluster's part has been stored, if `so`. (With a condition around it
    // the compiler would doubt that warps are in step, and reckon descriptors lane by lane.)
    __device__ __forceinline__ void left(int cluster, bool so) const {
        __syncwarp();
        signal_if(so && threadIdx.x % WARP == 0, flag(cluster));
    }
    // Until those of `count` clusters, 32 at most, are there. Nobody raises the flags again before the next launch, so
    // that they are lowered at once.
    __device__ __forceinline__ void wait(int cluster, int count) const {
        const int lane = threadIdx.x % WARP;
        u32* raised = flag(cluster + min(lane, count - 1));
        await(raised);
        if (lane < count) *raised = 0;
        __syncwarp();  // what a lane has seen, all have
    }
    // Then to shared memory, one behind the other; `landed` counts their bytes.
    __device__ __forceinline__ void fetch(int cluster, int count, u32 to, u32 landed) const {
        if (threadIdx.x % WARP == 0) {
            global_stores_seen();
            mbarrier_arrive_expect(landed, count * PART_BYTES);
#pragma unroll 1
            for (int i = 0; i < count; i++) bulk_copy(to + i * PART_BYTES, of(cluster + i), PART_BYTES, landed);
        }
        __syncwarp();
    }
};

// Where a warp's parts come: room for COUNT of them in shared memory, and a barrier.
template <int COUNT>
struct Landing {
    static_assert(COUNT > 0 && COUNT <= WARP, "operands have the room of a tile's sums; a lane watches a flag");
    u32 at, landed;
    __device__ __forceinline__ Landing(u32 operands, u32 barriers)
        : at(operands + threadIdx.x / WARP * (COUNT * PART_BYTES)), landed(barriers + threadIdx.x / WARP * 8) {}
};
