// A block of the `fast` layout (window/layout.py) to A operands of mma.m16n8k16.
#pragma once
#include "where.cuh"

constexpr int STEPS = BLOCK_COLS / 16;             // matrix instructions per block
constexpr u32 IN_PLACE = 0x83FF83FFu;              // sign, code and mantissa where a bfloat16 has them, both halves
constexpr u32 CODE_BASE = 0x3C003C00u;             // exponent 120: a power of two with room for the window
constexpr int CODE_EXPONENT = 120;                 // so a code c reads as exponent 120 + c
constexpr u32 PIECE = ((1u << PIECE_BITS) - 1) * 0x00010001u;
constexpr u32 SIGN = 0x80008000u;

// 2^(base - CODE_EXPONENT), what the sums of a row are multiplied by.
__device__ __forceinline__ float row_scale(int base) { return power_of_two(base - CODE_EXPONENT); }
// 2^(base - 127): the filler that stands in an exception's place.
__device__ __forceinline__ float row_filler(int base) { return __int_as_float(base << 23); }

// A lane's part of a block.
struct BlockWords {
    u32 word[WORDS];

    template <typename From>
    __device__ __forceinline__ void read(const u8* block, int lane) {
        const uint4 low = From::template read<uint4>(block + lane * 16);
        const uint4 high = From::template read<uint4>(block + QUADS_AT + lane * 16);
        const uint2 pair = From::template read<uint2>(block + PAIR_AT + lane * 8);
        const u32 of[WORDS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w, pair.x, pair.y,
                               From::template read<u32>(block + LAST_AT + lane * 4)};
#pragma unroll
        for (int j = 0; j < WORDS; j++) word[j] = of[j];
    }
};

// To operands: [step i][register r], two bfloat16 each.
__device__ __forceinline__ void decode_block(u32 (&a)[STEPS][4], const BlockWords& block) {
    const u32(&words)[WORDS] = block.word;
    const u32 last = words[WORDS - 1];
#pragma unroll
    for (int j = 0; j < STEPS * 4; j++) {
        u32& operand = a[j / 4][j % 4];
        if (j < WORDS) {
            operand = and_or(words[j], IN_PLACE, CODE_BASE);
        } else {
            const int k = j - WORDS;
            const u32 upper = and_or(words[2 * k] >> (PIECE_AT - PIECE_BITS), PIECE << PIECE_BITS, CODE_BASE);
            operand = and_or(last << (k + 1), SIGN, and_or(words[2 * k + 1] >> PIECE_AT, PIECE, upper));
        }
    }
}
// The same, read from `block`.
__device__ __forceinline__ void decode_block(u32 (&a)[STEPS][4], const u8* block, int lane) {
    BlockWords words;
    words.read<Near>(block, lane);
    decode_block(a, words);
}
