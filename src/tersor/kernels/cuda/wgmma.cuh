// The tensor cores of sm_90a: 64 x WIDTH x 16, both operands in shared memory, sums in registers.
//
// An operand tile is rows of 64 bfloat16 along k (128 bytes), eight rows after one another, swizzled: the 16-byte
// piece c of row r is at c ^ r % 8. Of weights, two tiles that follow one another along k take turns every eight rows: so a
// strip's rows of both stand together. A warp w of the four holds rows 16 w + lane / 4 (and + 8), columns 8 j + 2 (lane % 4)
// + {0, 1}: sums 4 j + {0, 1} (and 4 j + {2, 3}).
#pragma once
#include "ptx.cuh"

constexpr int WIDTH = INSTRUCTION_TOKENS, WIDTHS = TOKENS / WIDTH;  // tokens of one instruction
constexpr int ROW_BYTES = 128;                 // of an operand tile
constexpr int A_BLOCK_BYTES = 64 * 2 * ROW_BYTES;  // 64 rows of both tiles of weights
constexpr int NEXT_TILE = 8 * ROW_BYTES;       // from one of these to the other
// Upper words: 128-byte swizzle; units of 16 bytes from eight rows to the next eight.
constexpr u32 DESCRIPTOR_A = 1u << 30 | 2 * NEXT_TILE / 16, DESCRIPTOR_B = 1u << 30 | 8 * ROW_BYTES / 16;
constexpr u32 DESCRIPTOR_STEP = 2;             // 16 of k: 32 bytes

// Lower word, of the tile at a shared address that is a multiple of 1024. (Its upper half is unused with this swizzle.)
__device__ __forceinline__ u32 descriptor(u32 address) { return 1u << 16 | (address & 0x3ffff) >> 4; }

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

// d += A B. TEXT names the operands d, the last arguments are they.
#define WGMMA(SHAPE, TEXT, A, B, UPPER_A, UPPER_B, ...)                                                         \
    asm volatile("{\n.reg .b64 a, b;\nmov.b64 a, {%" A ", %" UPPER_A "};\nmov.b64 b, {%" B ", %" UPPER_B "};\n"   \
                 "wgmma.mma_async.sync.aligned.m64" SHAPE "k16.f32.bf16.bf16 {" TEXT "}, a, b, 1, 1, 1, 0, 0;\n}" \
                 : __VA_ARGS__                                                                                   \
                 : "r"(a), "r"(b), "n"(DESCRIPTOR_A), "n"(DESCRIPTOR_B))

#define TEXT0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TEXT1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define TEXT2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define TEXT3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define TEXT4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define TEXT5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define TEXT6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define TEXT7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define TEXT8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define TEXT9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define TEXT10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define TEXT11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define TEXT12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define TEXT13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define TEXT14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define TEXT15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS16(i) SUMS8(i), SUMS8(i + 8)
#define SUMS32(i) SUMS16(i), SUMS16(i + 16)
#define SUMS64(i) SUMS32(i), SUMS32(i + 32)
#define SUMS128(i) SUMS64(i), SUMS64(i + 64)
#define TEXTS2 TEXT0 ", " TEXT1
#define TEXTS4 TEXT0 ", " TEXT1 ", " TEXT2 ", " TEXT3
#define TEXTS8 TEXT0 ", " TEXT1 ", " TEXT2 ", " TEXT3 ", " TEXT4 ", " TEXT5 ", " TEXT6 ", " TEXT7
#define TEXTS16 TEXTS8 ", " TEXT8 ", " TEXT9 ", " TEXT10 ", " TEXT11 ", " TEXT12 ", " TEXT13 ", " TEXT14 ", " TEXT15

__device__ __forceinline__ void wgmma(float (&d)[WIDTH / 2], u32 a, u32 b) {
#if INSTRUCTION_TOKENS == 32
    WGMMA("n32", TEXTS2, "16", "17", "18", "19", SUMS16(0));
#elif INSTRUCTION_TOKENS == 64
    WGMMA("n64", TEXTS4, "32", "33", "34", "35", SUMS32(0));
#elif INSTRUCTION_TOKENS == 128
    WGMMA("n128", TEXTS8, "64", "65", "66", "67", SUMS64(0));
#else
    WGMMA("n256", TEXTS16, "128", "129", "130", "131", SUMS128(0));
#endif
}

// Four 8 x 8 matrices to shared memory, transposed: lane l has elements 2 (l % 4) and one more of row l / 4 of each, and
// gives the address to which column l % 8 of matrix l / 8 goes.
__device__ __forceinline__ void store_matrices_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}
