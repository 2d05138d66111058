// A block of the `fast` layout (window/layout.py) from shared memory to A operands of mma.m16n8k16.
#pragma once
#include "ptx.cuh"

constexpr int STEPS = BLOCK_COLS / 16;             // matrix instructions per block
constexpr u32 CODE_MASK = 0x03800380u;             // three exponent bits, both halves
constexpr u32 CODE_BASE = 0x3C003C00u;             // exponent 120: a power of two with room for the window
constexpr int CODE_EXPONENT = 120;                 // so a code c reads as exponent 120 + c
constexpr u32 SIGN_MANTISSA = 0x807F807Fu;

// 2^(base - CODE_EXPONENT), what the sums of a row are multiplied by.
__device__ __forceinline__ float row_scale(int base) { return __int_as_float((127 + base - CODE_EXPONENT) << 23); }
// 2^(base - 127): the filler that stands in an exception's place.
__device__ __forceinline__ float row_filler(int base) { return __int_as_float(base << 23); }

// Read and decode this lane's part of the block at `block`: [step i][register r], two bfloat16 each.
__device__ __forceinline__ void decode_block(u32 (&a)[STEPS][4], const u8* block, int lane) {
    const uint4 low = *(const uint4*)(block + lane * 16);
    const uint4 high = *(const uint4*)(block + 512 + lane * 16);
    const uint2 w01 = *(const uint2*)(block + CODES_AT + lane * 8);
    const u32 w2 = *(const u32*)(block + LAST_CODES_AT + lane * 4);
    u32 code[4 * STEPS];
    const u32 words[3] = {w01.x, w01.y, w2};
#pragma unroll
    for (int w = 0; w < 3; w++) {
        code[5 * w + 0] = and_or(words[w], CODE_MASK, CODE_BASE);
        code[5 * w + 1] = and_or(words[w] << 3, CODE_MASK, CODE_BASE);
        code[5 * w + 2] = and_or(words[w] << 6, CODE_MASK, CODE_BASE);
        code[5 * w + 3] = and_or(words[w] >> 3, CODE_MASK, CODE_BASE);
        code[5 * w + 4] = and_or(words[w] >> 6, CODE_MASK, CODE_BASE);
    }
    const u32 last = (words[0] & 0x00010001u) | (words[1] & 0x00010001u) << 1 | (words[2] & 0x00010001u) << 2;
    code[15] = and_or(last << 7, CODE_MASK, CODE_BASE);
    const u32 raw[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            // The byte of each weight, in both bytes of its half: bit 15 is the sign, bits 0 to 6 the mantissa.
            const u32 bytes = __byte_perm(raw[2 * i + r / 2], 0, r % 2 ? 0x3322 : 0x1100);
            a[i][r] = and_or(bytes, SIGN_MANTISSA, code[4 * i + r]);
        }
    }
}
