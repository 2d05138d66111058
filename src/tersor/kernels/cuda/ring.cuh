// A warp's own ring of stages in shared memory, filled by asynchronous copies several stages ahead.
//
// Memory answers after 600 to 900 cycles; to keep it busy a multiprocessor must have some 30 KB under way.
// Registers could hold that (a prototype did) but then not much else; shared memory has the room. Much more
// than that only makes everybody wait longer. A stage belongs to one warp, so nobody else ever waits for it.
#pragma once
#include "ptx.cuh"

template <int DEPTH, int BYTES>
struct Ring {
    static constexpr int COPIES = BYTES / (WARP * 16), REST = BYTES % (WARP * 16) / 16;  // whole ones, lanes of the last
    u32 begin;             // shared address of this lane's first 16 bytes
    u32 filling = 0, reading = 0;  // offsets in bytes

    __device__ __forceinline__ Ring(u8* stages, int lane) : begin(shared_address(stages) + lane * 16) {}

    // Begin to copy the first BYTES of `left` bytes (a multiple of 16) to the next stage. `from`: this lane's.
    __device__ __forceinline__ void fill(const u8* from, int left, int lane) {
        const u32 to = begin + filling;
        if (left >= BYTES) {
#pragma unroll
            for (int i = 0; i < COPIES; i++) copy_async_16(to + i * WARP * 16, from + i * WARP * 16);
            if (REST && lane < REST) copy_async_16(to + COPIES * WARP * 16, from + COPIES * WARP * 16);
        } else {
            for (int i = 0; (i * WARP + lane) * 16 < left; i++) copy_async_16(to + i * WARP * 16, from + i * WARP * 16);
        }
        copy_async_commit();
        filling = filling == (DEPTH - 1) * BYTES ? 0 : filling + BYTES;
    }

    // Byte offset of the oldest stage, now complete. All lanes have left the stage before: it may be filled again.
    __device__ __forceinline__ u32 read() {
        copy_async_wait<DEPTH - 2>();
        __syncwarp();
        const u32 stage = reading;
        reading = reading == (DEPTH - 1) * BYTES ? 0 : reading + BYTES;
        return stage;
    }
};
