// The activations as the B operand of mma.m16n8k16, and one column of them for an exception.
//
// A lane's four steps of half a stage want 16 consecutive columns of one token. For few tokens that
// is two 16-byte loads through L1. For more, a slice of the columns is kept in shared memory with eight tokens
// side by side, 16 bytes per column: then an exception's eight values are one load, and `ldmatrix` turns four
// rows of eight into operands. Those four are APART columns apart and would meet in the same banks; the piece of
// column c is therefore number c ^ (c / APART % 4 * 2).
//
// wgmma (WARPGROUPS) reads them by itself, 16 pieces for a step, as its k goes: 2 t + {0, 1} and 8 + 2 t + {0, 1} are the
// columns of the four lanes t of a row. Between the lowest bit of a column's number and those that tell APART * 4 columns
// apart, the bits of t are then the lowest and not the highest: they are rotated by two.
#pragma once
#include "ptx.cuh"
#include "stage.cuh"

constexpr int PLANE_BYTES = SLICE * SPAN_COLS * 16;  // eight tokens of a slice
constexpr int APART = lane_column(0, 1) - lane_column(0, 0);

// Byte of a column's piece.
__device__ __forceinline__ constexpr int piece_at(int column) {
#if WARPGROUPS
    constexpr int TURNED = 4 * APART - 2;  // bits of a column's number
    const int twice = (column & TURNED) * (4 * 16 + 2 * 16 / APART);  // the bits below t, and t again below them
    return (twice & TURNED * 16) | (column * 16 & ~(TURNED * 16));
#else
    return (column ^ (column / APART & 3) << 1) * 16;
#endif
}

// Even column of the pair of pieces that a thread of this number stages. For wgmma threads that follow one another write
// pieces that do, and eight of them read 32 bytes that follow one another.
__device__ __forceinline__ constexpr int pair_column(int pair) {
    if (!WARPGROUPS) return 2 * pair;
    return pair / (2 * APART) * (4 * APART) + pair % (2 * APART) / 4 * 2 + pair % 4 * APART;
}

struct TokenValues {
    float value[TILE];
    __device__ __forceinline__ float operator[](int k) const { return value[k]; }
};

struct Activations {
    const u16* x;  // [TOKENS][X_PITCH], from this slice's first column on
    u8* slice;     // [tiles][columns][8 tokens]

    // The same from a segment's first column on.
    __device__ __forceinline__ Activations from(int column) const {
        const u16* at = x + column;
#if !SLICE
        asm("" : "+l"(at));  // or the compiler works the address out again for every exception
#endif
        return {at, slice + column * 16};
    }
    // Columns of eight tokens, for one exception.
    __device__ __forceinline__ TokenValues column(int tile, u32 c) const {
        TokenValues v;
#if SLICE
        const uint4 eight = *(const uint4*)(slice + tile * PLANE_BYTES + piece_at(c));
        const u32 pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int k = 0; k < TILE; k++)
            v.value[k] = __uint_as_float(k % 2 ? pairs[k / 2] & 0xffff0000u : pairs[k / 2] << 16);
#else
        const u16* at = element(x + tile * 8 * X_PITCH, c);
#pragma unroll
        for (int k = 0; k < TILE; k++) v.value[k] = from_bf16(__ldg(at + k * X_PITCH));
#endif
        return v;
    }

    // Put this slice into shared memory, two columns of eight tokens per thread and turn. Everybody waits for it: so TURNS are
    // asked for at once, as registers allow, and where all tokens are there nothing is reckoned on the way.
    __device__ __forceinline__ void stage(int columns, int tokens, int thread) const {
#if SLICE
        if (thread >= STAGING) return;
        if (tokens == TOKENS && columns == SLICE * SPAN_COLS)
            stage_turns<true>(columns, tokens, thread);
        else
            stage_turns<false>(columns, tokens, thread);
#endif
    }

#if SLICE
private:
    // Threads that do so: a turn is then within a tile of tokens, and pieces of all turns lie alike.
    static constexpr int STAGING = WARP * (CONSUMERS < 4 ? 2 : CONSUMERS < 8 ? 4 : CONSUMERS < 16 ? 8 : 16);
    static constexpr int PAIRS = SLICE * SPAN_COLS / 2;
    static_assert(CONSUMERS >= 2 && PAIRS % STAGING == 0 && 2 * STAGING % (4 * APART) == 0);

    template <bool ALL>
    __device__ __forceinline__ void stage_turns(int columns, int tokens, int thread) const {
        constexpr int OF_TILE = PAIRS / STAGING, ALL_TURNS = OF_TILE * (TOKENS / 8);
        constexpr int TURNS = (CONSUMERS + ADDERS) * BLOCKS_PER_SM > 20 ? 1 : ALL_TURNS < 4 ? ALL_TURNS : 4;  // at once
        const int own = pair_column(thread);
        const bool odd_first = WARPGROUPS && thread & 4;  // or eight threads would write to the banks of four
        const u16* from = x + own;
        u8* to = slice + piece_at(own);  // of an even column; the next follows
#pragma unroll
        for (int first = 0; first < ALL_TURNS; first += TURNS) {
            u32 two[TURNS][8];
#pragma unroll
            for (int turn = 0; turn < TURNS && first + turn < ALL_TURNS; turn++) {
                const int tile = (first + turn) / OF_TILE, c = (first + turn) % OF_TILE * STAGING * 2;
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    const int token = tile * 8 + k;
                    const bool here = ALL || (token < tokens && c + own < columns);
                    two[turn][k] = here ? __ldg((const u32*)(from + (long long)token * X_PITCH + c)) : 0;
                }
            }
#pragma unroll
            for (int turn = 0; turn < TURNS && first + turn < ALL_TURNS; turn++) {
                const int tile = (first + turn) / OF_TILE, c = (first + turn) % OF_TILE * STAGING * 2;
                u32 one[4], other[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    one[k] = __byte_perm(two[turn][2 * k], two[turn][2 * k + 1], odd_first ? 0x7632 : 0x5410);
                    other[k] = __byte_perm(two[turn][2 * k], two[turn][2 * k + 1], odd_first ? 0x5410 : 0x7632);
                }
                const int at = tile * PLANE_BYTES + c * 16;
                *(uint4*)(to + at + odd_first * 16) = make_uint4(one[0], one[1], one[2], one[3]);
                *(uint4*)(to + at + !odd_first * 16) = make_uint4(other[0], other[1], other[2], other[3]);
            }
        }
    }
#endif
};
