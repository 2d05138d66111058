// The tensor cores of sm_90a: 64 x WIDTH x 16, both operands in shared memory, sums in registers.
//
// An operand tile is rows of 64 bfloat16 along k (128 bytes), eight rows after one another, swizzled: the 16-byte
// piece c of row r is at c ^ r % 8. Of weights, two tiles that follow one another along k take turns every eight rows: so a
// strip's rows of both stand together. A warp w of the four holds rows 16 w + lane / 4 (and + 8), columns 8 j + 2 (lane % 4)
// + {0, 1}: sums 4 j + {0, 1} (and 4 j + {2, 3}).
#pragma once
#include "warpgroup.cuh"

// Tokens of an instruction, and of the last one of a tile.
constexpr int WIDTH = INSTRUCTION_TOKENS, WIDTHS = ceil_div(TOKENS, WIDTH), LAST_WIDTH = LAST_TOKENS;
static_assert((WIDTHS - 1) * WIDTH + LAST_WIDTH == TOKENS);
constexpr int ROW_BYTES = 128;                 // of an operand tile
constexpr int A_BLOCK_BYTES = 64 * 2 * ROW_BYTES;  // 64 rows of both tiles of weights
constexpr int NEXT_TILE = 8 * ROW_BYTES;       // from one of these to the other
// Upper words: 128-byte swizzle; units of 16 bytes from eight rows to the next eight.
constexpr u32 DESCRIPTOR_A = 1u << 30 | 2 * NEXT_TILE / 16, DESCRIPTOR_B = 1u << 30 | 8 * ROW_BYTES / 16;
constexpr u32 DESCRIPTOR_STEP = 2;             // 16 of k: 32 bytes

// Lower word, of the tile at a shared address that is a multiple of 1024. (Its upper half is unused with this swizzle.)
__device__ __forceinline__ u32 descriptor(u32 address) { return 1u << 16 | address_field(address); }

// What an instruction of N tokens needs of the compiler: its sums, and the text that names them. They come after the two
// descriptors and a condition, which are said to change for that: what changes comes first, and so numbers do not depend on N.
#define SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS8(i) SUMS4(i), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TEXT_16 "%3, %4, %5, %6, %7, %8, %9, %10"
#define TEXT_32 TEXT_16 ", %11, %12, %13, %14, %15, %16, %17, %18"
#define TEXT_48 TEXT_32 ", %19, %20, %21, %22, %23, %24, %25, %26"
#define TEXT_64 TEXT_48 ", %27, %28, %29, %30, %31, %32, %33, %34"
#define TEXT_80 TEXT_64 ", %35, %36, %37, %38, %39, %40, %41, %42"
#define TEXT_96 TEXT_80 ", %43, %44, %45, %46, %47, %48, %49, %50"
#define TEXT_112 TEXT_96 ", %51, %52, %53, %54, %55, %56, %57, %58"
#define TEXT_128 TEXT_112 ", %59, %60, %61, %62, %63, %64, %65, %66"
#define TEXT_136 TEXT_128 ", %67, %68, %69, %70"
#define TEXT_144 TEXT_128 ", %67, %68, %69, %70, %71, %72, %73, %74"
#define TEXT_152 TEXT_144 ", %75, %76, %77, %78"
#define TEXT_160 TEXT_144 ", %75, %76, %77, %78, %79, %80, %81, %82"
#define TEXT_168 TEXT_160 ", %83, %84, %85, %86"
#define TEXT_176 TEXT_160 ", %83, %84, %85, %86, %87, %88, %89, %90"
#define TEXT_184 TEXT_176 ", %91, %92, %93, %94"
#define TEXT_192 TEXT_176 ", %91, %92, %93, %94, %95, %96, %97, %98"
#define TEXT_200 TEXT_192 ", %99, %100, %101, %102"
#define TEXT_208 TEXT_192 ", %99, %100, %101, %102, %103, %104, %105, %106"
#define TEXT_216 TEXT_208 ", %107, %108, %109, %110"
#define TEXT_224 TEXT_208 ", %107, %108, %109, %110, %111, %112, %113, %114"
#define TEXT_232 TEXT_224 ", %115, %116, %117, %118"
#define TEXT_240 TEXT_224 ", %115, %116, %117, %118, %119, %120, %121, %122"
#define TEXT_256 TEXT_240 ", %123, %124, %125, %126, %127, %128, %129, %130"
#define SUMS_16 SUMS8(0)
#define SUMS_32 SUMS_16, SUMS8(8)
#define SUMS_48 SUMS_32, SUMS8(16)
#define SUMS_64 SUMS_48, SUMS8(24)
#define SUMS_80 SUMS_64, SUMS8(32)
#define SUMS_96 SUMS_80, SUMS8(40)
#define SUMS_112 SUMS_96, SUMS8(48)
#define SUMS_128 SUMS_112, SUMS8(56)
#define SUMS_136 SUMS_128, SUMS4(64)
#define SUMS_144 SUMS_128, SUMS8(64)
#define SUMS_152 SUMS_144, SUMS4(72)
#define SUMS_160 SUMS_144, SUMS8(72)
#define SUMS_168 SUMS_160, SUMS4(80)
#define SUMS_176 SUMS_160, SUMS8(80)
#define SUMS_184 SUMS_176, SUMS4(88)
#define SUMS_192 SUMS_176, SUMS8(88)
#define SUMS_200 SUMS_192, SUMS4(96)
#define SUMS_208 SUMS_192, SUMS8(96)
#define SUMS_216 SUMS_208, SUMS4(104)
#define SUMS_224 SUMS_208, SUMS8(104)
#define SUMS_232 SUMS_224, SUMS4(112)
#define SUMS_240 SUMS_224, SUMS8(112)
#define SUMS_256 SUMS_240, SUMS8(120)
#define WGMMA_OF(N)                                                                                                     \
    asm volatile("{\n.reg .pred more;\nsetp.ne.u32 more, %2, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TEXT_##N "}, %0, %1, more, 1, 1, 0, 0;\n}"  \
                 : "+l"(a), "+l"(b), "+r"(more), SUMS_##N)
#define WGMMA(N) WGMMA_OF(N)  // N itself may be a macro

// d = A B, or d += A B where there are more such sums, of the tiles with these lower words: of N tokens, and of all.
template <int N>
__device__ __forceinline__ void wgmma(float* d, u32 of_a, u32 of_b, u32 more) {
    static_assert(N == WIDTH || N == LAST_WIDTH);
    u64 a = whole_descriptor(of_a, DESCRIPTOR_A), b = whole_descriptor(of_b, DESCRIPTOR_B);
    if constexpr (N == WIDTH) {
        WGMMA(INSTRUCTION_TOKENS);
    } else {
        WGMMA(LAST_TOKENS);
    }
}
__device__ __forceinline__ void wgmma_all(float (&d)[TOKENS / 2], u32 of_a, u32 of_b, bool more) {
#pragma unroll
    for (int n = 0; n < WIDTHS - 1; n++) wgmma<WIDTH>(d + n * (WIDTH / 2), of_a, of_b + (n * WIDTH * ROW_BYTES >> 4), more);
    wgmma<LAST_WIDTH>(d + (TOKENS - LAST_WIDTH) / 2, of_a, of_b + ((TOKENS - LAST_WIDTH) * ROW_BYTES >> 4), more);
}

// Four 8 x 8 matrices to shared memory, transposed: lane l has elements 2 (l % 4) and one more of row l / 4 of each, and
// gives the address to which column l % 8 of matrix l / 8 goes.
__device__ __forceinline__ void store_matrices_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}
// The first two, to where lanes 0 to 15 say.
__device__ __forceinline__ void store_matrices_transposed(u32 address, u32 a, u32 b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}
