// Four strips times 16 tokens by the tensor cores of sm_90a: weights in registers, as mma.m16n8k16 takes them, activations
// in shared memory (activations.cuh), where these find them by themselves. Sums have the bits of chains of mma.m16n8k16
// (observed: dev/LOG.md, tests/kernels/test_warpgroups_gpu.py).
#pragma once
#include "mbarrier.cuh"
#include "warpgroup.cuh"
#include "work.cuh"

constexpr u32 NEXT_K = 8 * 16, NEXT_TOKENS = PLANE_BYTES;  // bytes from 8 of k to the next 8, and from 8 tokens
// Of a descriptor: the lower word's upper half, and the upper word (no swizzle).
constexpr u32 LEADING = NEXT_K / 16 << 16, STRIDE = NEXT_TOKENS / 16;
constexpr int STEP_PIECES = 16;

// sum += A B of one step or, FIRST, sum = A B; sum[n] are those of 8 tokens. All four warps of a warpgroup come here.
template <bool FIRST>
__device__ __forceinline__ void wgmma(float (&sum)[2][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{\n.reg .pred more;\nsetp.ne.b32 more, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, more, 1, 1, 1;\n}"
        : "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), "+f"(sum[1][1]),
          "+f"(sum[1][2]), "+f"(sum[1][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(!FIRST));
}

// A segment's activations, as those of stage_activations.cuh, but that they are multiplied where they are. Its steps follow
// one another, and each chain has a descriptor of its own: so from one step to the next is one addition, in place.
template <int TILES>
struct StageActivations {
    u32 begin;         // lower word of the slice's first step
    u64 step[CHAINS];  // descriptors of the next ones

    __device__ __forceinline__ StageActivations(const Activations& from, int)
        : begin(LEADING | address_field(shared_address(from.slice))) {}
    __device__ __forceinline__ void aim(int first, int, int) {
#pragma unroll
        for (int k = 0; k < CHAINS; k++)
            step[k] = whole_descriptor(begin + first + k * STEP_PIECES, STRIDE);
    }
    __device__ __forceinline__ void prefetch(int) {}
    // Begin to multiply half a stage. Its weights' registers are left alone until that is waited for; of FIRST halves of
    // segments come new sums.
    template <bool FIRST>
    __device__ __forceinline__ void multiply(float (&sum)[CHAINS][TILES][4], const u32 (&a)[STEPS][4]) {
        if (FIRST)  // what they were before is written before the fence
#pragma unroll
            for (int k = 0; k < CHAINS; k++)
#pragma unroll
                for (int n = 0; n < TILES; n++) wgmma_pin(sum[k][n]);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int k = i % CHAINS;
            if (FIRST && i < CHAINS)
                wgmma<true>(sum[k], a[i], step[k]);
            else
                wgmma<false>(sum[k], a[i], step[k]);
            asm("{\n.reg .b32 low, high;\nmov.b64 {low, high}, %0;\nadd.u32 low, low, %1;\nmov.b64 %0, {low, high};\n}"
                : "+l"(step[k])
                : "n"(CHAINS * STEP_PIECES));
        }
        wgmma_commit();
    }
    // Until the sums are there.
    __device__ __forceinline__ void finish(float (&sum)[CHAINS][TILES][4]) const {
        wgmma_wait<0>();
#pragma unroll
        for (int k = 0; k < CHAINS; k++)
#pragma unroll
            for (int n = 0; n < TILES; n++) wgmma_pin(sum[k][n]);
    }
};
