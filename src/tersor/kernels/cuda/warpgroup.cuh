// How warps of sm_90a multiply four at a time, whatever the operands: groups of wgmma under way.
#pragma once
#include "ptx.cuh"

// Of the descriptor of an operand in shared memory: its address. In a cluster, the upper bits have the block's number.
__device__ __forceinline__ u32 address_field(u32 address) { return (address & 0x3ffff) >> 4; }
__device__ __forceinline__ u64 whole_descriptor(u32 lower, u32 upper) {
    u64 both;
    asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(lower), "r"(upper));
    return both;
}

// What was written to registers before is there for the instructions that follow.
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until at most N groups are still under way.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// The compiler must not read these sums before this point.
template <int N>
__device__ __forceinline__ void wgmma_pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
