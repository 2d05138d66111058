// One short function per PTX instruction that CUDA C++ has no name for.
#pragma once
#include "types.cuh"

// Shared-memory address as the asynchronous copies want it.
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Asynchronous copies, global to shared. 16 bytes go past L1; the hint fetches 256-byte pieces into L2.
__device__ __forceinline__ void copy_async_16(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// The same where `here`, without a branch.
__device__ __forceinline__ void copy_async_16_if(bool here, u32 to, const void* from) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p cp.async.cg.shared.global.L2::256B [%1], [%2], 16;\n}" ::"r"(
                     (int)here),
                 "r"(to), "l"(from)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most N of this thread's groups are still under way.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// What is read once and no one writes during the kernel: L1 is for others.
__device__ __forceinline__ uint4 load_stream(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
__device__ __forceinline__ u32 load_stream(const u32* p) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
__device__ __forceinline__ u16 load_stream(const u16* p) {
    u16 v;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
__device__ __forceinline__ u8 load_stream(const u8* p) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 load_stream(const uint2* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

// 16 bytes of a decoded matrix, which leave the L2 cache first: decoding is 5 to 25 % faster for it (dev/LOG.md).
__device__ __forceinline__ void store_stream_16(void* p, uint4 v) { __stcs((uint4*)p, v); }

// d += A B: A 16 x 16 (registers r = 0..3 as in window/layout.py), B 16 x 8, bfloat16 in, float32 out.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory, transposed. Lane l gives the address of row l % 8
// of matrix l / 8, and gets elements (2 t, g) and (2 t + 1, g) of each.
__device__ __forceinline__ void load_matrices_transposed(u32 (&d)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

// &of[i] in two instructions; left to itself the compiler makes four of it.
__device__ __forceinline__ const u16* element(const u16* of, u32 i) {
    const u16* at;
    asm("mad.wide.u32 %0, %1, 2, %2;" : "=l"(at) : "r"(i), "l"(of));
    return at;
}

// A flag in global memory, 0 or 1. Who sees it raised also sees what was stored before, by this thread or by those that it
// has met in a barrier.
__device__ __forceinline__ void signal_if(bool so, u32* flag) {
    asm volatile("{\n.reg .pred so;\nsetp.ne.u32 so, %0, 0;\n@so st.release.gpu.global.u32 [%1], 1;\n}" ::"r"((u32)so), "l"(flag)
                 : "memory");
}
// Wait for it, as a whole warp, but not for ever: a flag that is never raised is an error in a kernel and must not hang the
// GPU. All in assembly: with a loop that the compiler sees it makes every wgmma wait for the one before.
__device__ __forceinline__ void await(const u32* flag) {
    asm volatile(
        "{\n.reg .pred down, never;\n.reg .u32 raised, tries;\n"
        "mov.u32 tries, 0x4000000;\n"
        "AGAIN:\n"
        "ld.acquire.gpu.global.u32 raised, [%0];\n"
        "setp.eq.u32 down, raised, 0;\n"
        "vote.sync.any.pred down, down, 0xffffffff;\n"
        "sub.u32 tries, tries, 1;\n"
        "setp.eq.u32 never, tries, 0;\n"
        "@never trap;\n"
        "@down bra.uni AGAIN;\n}" ::"l"(flag)
        : "memory");
}

// Registers that this warpgroup's threads have from here on, of those that the launch allotted (sm_90a).
template <int N>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// threadIdx.x, read anew: what follows from it is not also kept in another form, where registers are few.
__device__ __forceinline__ int thread_anew() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}
// What is the same in all lanes; now the compiler knows it.
__device__ __forceinline__ int uniform(int v) { return __shfl_sync(ALL_LANES, v, 0); }

// Bring a cache line to L2.
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Programmatic dependent launch (sm_90): a kernel begins while the one before it ends. Until `previous_done`
// it may only read what no kernel writes, the weights, and write nothing; from `let_next_begin` on its successor may
// start. At least one block of every kernel calls previous_done, so that whoever waits has waited for all before it.
__device__ __forceinline__ void previous_done() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 16 bits to shared memory where `here`, without a branch.
__device__ __forceinline__ void store_shared_if(bool here, u32 to, u32 value) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.shared.u16 [%1], %2;\n}" ::"r"((int)here), "r"(to),
                 "h"((u16)value)
                 : "memory");
}
// And from there, anything elsewhere.
__device__ __forceinline__ u16 load_shared_u16_if(bool here, u32 from) {
    u16 value = 0;
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %1, 0;\n@p ld.shared.u16 %0, [%2];\n}"
                 : "+h"(value)
                 : "r"((int)here), "r"(from)
                 : "memory");
    return value;
}
__device__ __forceinline__ void store_shared_16(u32 to, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ float4 load_shared_16(u32 from) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(from) : "memory");
    return v;
}

// (a & b) | c in one instruction.
__device__ __forceinline__ u32 and_or(u32 a, u32 b, u32 c) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Named barriers: `arrive` goes on at once, `sync` waits until `threads` have come by either way.
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Round to nearest even, NaN stays NaN.
__device__ __forceinline__ u16 to_bf16(float f) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
__device__ __forceinline__ float from_bf16(u16 h) { return __uint_as_float((u32)h << 16); }
// Binary16 in the low half of a word to float32, exactly.
__device__ __forceinline__ float from_f16(u32 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((u16)h));
    return f;
}
// 2^exponent, a normal number.
__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((127 + exponent) << 23); }
// Two floats rounded to a pair of bfloat16.
__device__ __forceinline__ u32 to_bf16x2(float low, float high) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
// a * b + c of pairs, each rounded once, subnormals as they are.
__device__ __forceinline__ u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
__device__ __forceinline__ u32 multiply_bf16x2(u32 a, u32 b) { return fma_bf16x2(a, b, 0x80008000u); }
__device__ __forceinline__ u32 fma_f16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Thread block clusters (sm_90): wait for all blocks, and read a float of another block's shared memory.
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
// Without making anybody wait for this thread's loads and stores, nor them for its.
__device__ __forceinline__ void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() { cluster_arrive(), cluster_wait(); }
__device__ __forceinline__ u32 address_of_rank(u32 mine, int rank) {
    u32 address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(mine), "r"(rank));
    return address;
}
__device__ __forceinline__ float load_of_rank(const float* mine, int rank) {
    float value;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address_of_rank(shared_address(mine), rank)) : "memory");
    return value;
}
#endif
