// Barriers in shared memory that count arrivals and the bytes of bulk copies (sm_90).
//
// A ring of slots has two per slot: `full`, on which those arrive who filled it, and `empty`, for those who have
// read it. The n-th use of a slot waits for phase n of `full` to end and for phase n - 1 of `empty`; a barrier that
// nobody arrived at yet reports the phase before its first as ended, so that the first use does not wait.
#pragma once
#include "ptx.cuh"

constexpr u32 PATIENCE = 1u << 26;  // tries, seconds; a wait this long is an error in a kernel and must not hang the GPU

__device__ __forceinline__ void mbarrier_init(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to bulk copies and, by a relaxed barrier of the cluster, to its other blocks.
__device__ __forceinline__ void mbarrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// The same where `here`, without a branch.
__device__ __forceinline__ void mbarrier_arrive_expect_if(bool here, u32 barrier, int bytes) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%1], %2;\n}" ::"r"(
                     (u32)here),
                 "r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ bool mbarrier_ended(u32 barrier, u32 parity) {
    u32 ended;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
    return ended;
}
// Wait until the phase of this parity has ended. A try sleeps for a while before it fails.
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
    for (u32 tries = PATIENCE; !mbarrier_ended(barrier, parity);)
        if (--tries == 0) __trap();
}

// `bytes` (a multiple of 16) from global to shared memory; `barrier` counts them.
__device__ __forceinline__ void bulk_copy(u32 to, const void* from, int bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
// The same for barriers and memory of other blocks of the cluster, by addresses of `address_of_rank`.
__device__ __forceinline__ void mbarrier_arrive_at(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void bulk_copy_at_if(bool here, u32 to, u32 from, int bytes, u32 barrier) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n"
        "@p cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%1], [%2], %3, [%4];\n}" ::"r"((u32)here),
        "r"(to), "r"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

// Between blocks of a cluster that store and load themselves: who has waited for a phase also sees what others did before
// they arrived, or what was stored by `store_async_16`.
__device__ __forceinline__ void mbarrier_release_at(u32 barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ bool mbarrier_ended_in_cluster(u32 barrier, u32 parity) {
    u32 ended;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
    return ended;
}
__device__ __forceinline__ void mbarrier_wait_in_cluster(u32 barrier, u32 parity) {
    for (u32 tries = PATIENCE; !mbarrier_ended_in_cluster(barrier, parity);)
        if (--tries == 0) __trap();
}
// 16 bytes to another block's shared memory, whose barrier counts them; who stores goes on at once.
__device__ __forceinline__ void store_async_16(u32 to, float4 v, u32 barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
                 : "memory");
}

// A matrix in global memory, as the driver describes it (kernels/launcher.py): where, how large, what part is copied at a
// time, how that part is swizzled. A kernel's parameter.
struct alignas(64) TensorMap {
    u64 opaque[16];
};
// The part that begins at (row, col) to shared memory, zeros where it is outside; all of its bytes are counted.
__device__ __forceinline__ void tensor_copy(u32 to, const TensorMap& from, int row, int col, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&from), "r"(col), "r"(row), "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void tensor_copy_if(bool here, u32 to, const TensorMap& from, int row, int col, u32 barrier) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n"
        "@p cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%1], [%2, {%3, %4}], [%5];\n}" ::"r"(
            (u32)here),
        "r"(to), "l"(&from), "r"(col), "r"(row), "r"(barrier)
        : "memory");
}
// A part, from where copies of it come, to the matrix; what is outside goes nowhere.
__device__ __forceinline__ void tensor_store(const TensorMap& to, int row, int col, u32 from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&to), "r"(col),
                 "r"(row), "r"(from)
                 : "memory");
}
// A kernel's parameter to where copies find it.
__device__ __forceinline__ void prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
// This thread's stores since the last call are a group. Wait until all groups but the last N have read shared memory. That
// stores are made, the end of the kernel waits for.
__device__ __forceinline__ void tensor_stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void tensor_stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// What others stored to global memory, and this thread has seen, for its bulk copies to see.
__device__ __forceinline__ void global_stores_seen() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
// What this thread stored to shared memory, for bulk copies and wgmma to see.
__device__ __forceinline__ void shared_stores_done() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
