// The activations as the B operand of mma.m16n8k16, a stage at a time, from wherever they are (activations.cuh).
#pragma once
#include "activations.cuh"

template <int TILES>
struct StageActivations {
#if SLICE
    u32 begin, address;  // this lane's row of the matrices of step 0, of the slice and of a segment

    __device__ __forceinline__ StageActivations(const Activations& from, int lane) {
        // Matrix m = lane / 8 is register b = m % 2 of step m / 2; row r has column APART (r / 2) + 4 step + 2 b + r % 2.
        const int m = lane / 8, r = lane % 8;
        const int piece = r / 2 * APART + ((m / 2 * 4 + m % 2 * 2 + r % 2) ^ (r / 2) << 1);
        begin = shared_address(from.slice) + piece * 16;
    }
    __device__ __forceinline__ void aim(int first, int, int) {
        address = begin + first * 16;
        asm("" : "+r"(address));  // or the compiler works the address out again for every load
    }
    __device__ __forceinline__ void prefetch(int) {}
    // Operands of the steps 2 * two and 2 * two + 1 of half h: 8 columns further for the second two.
    __device__ __forceinline__ void load(u32 (&b)[4], int tile, int stage, int h, int two) const {
        const int column = stage * STAGE_COLS + lane_column(h, 0) + two * 8;
        load_matrices_transposed(b, address + tile * PLANE_BYTES + column * 16);
    }
#else
    const u16 *begin, *at;
    int halves;                     // that this lane reads of a segment, or more
    uint4 piece[TILES][2][2] = {};  // stays zero in lanes that no token belongs to

    __device__ __forceinline__ StageActivations(const Activations& from, int lane)
        : begin(from.x + lane / 4 * X_PITCH + lane_column(0, lane % 4)) {}
    // At the segment that begins with column `first` and has so many halves.
    __device__ __forceinline__ void aim(int first, int there, int lane) {
        at = begin + first, halves = lane / 4 < TILE ? there : 0;
        asm("" : "+l"(at));  // or the compiler works the address out again for every load
    }
    __device__ __forceinline__ void prefetch(int stage) {
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (halves > (X_PITCH % SEGMENT_COLS ? 2 * stage + (X_PITCH % STAGE_COLS ? h : 0) : 0)) {
                    const uint4* from = (const uint4*)(at + n * 8 * X_PITCH + stage * STAGE_COLS + lane_column(h, 0));
                    piece[n][h][0] = __ldg(from);
                    piece[n][h][1] = __ldg(from + 1);
                }
    }
    __device__ __forceinline__ void load(u32 (&b)[4], int n, int, int h, int two) const {
        const uint4 v = piece[n][h][two];
        b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
    }
#endif
};
