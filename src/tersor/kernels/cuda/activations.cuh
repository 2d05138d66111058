// The activations as the B operand of mma.m16n8k16, and one column of them for an exception.
//
// A lane's four steps of half a stage want 16 consecutive columns of one token. For few tokens that
// is two 16-byte loads through L1. For more, a slice of the columns is kept in shared memory with eight tokens
// side by side, 16 bytes per column: then an exception's eight values are one load, and `ldmatrix` turns four
// rows of eight into operands. Those four are APART columns apart and would meet in the same banks; the piece of
// column c is therefore number c ^ (c / APART % 4 * 2).
#pragma once
#include "ptx.cuh"
#include "stage.cuh"

constexpr int PLANE_BYTES = SLICE * SPAN_COLS * 16;  // eight tokens of a slice
constexpr int APART = lane_column(0, 1) - lane_column(0, 0);

// Byte of a column's piece.
__device__ __forceinline__ int piece_at(int column) { return (column ^ (column / APART & 3) << 1) * 16; }

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
        const u16* from = x + 2 * thread;
        u8* to = slice + piece_at(2 * thread);  // of an even column; the next follows
#pragma unroll
        for (int first = 0; first < ALL_TURNS; first += TURNS) {
            u32 two[TURNS][8];
#pragma unroll
            for (int turn = 0; turn < TURNS && first + turn < ALL_TURNS; turn++) {
                const int tile = (first + turn) / OF_TILE, c = (first + turn) % OF_TILE * STAGING * 2;
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    const int token = tile * 8 + k;
                    const bool here = ALL || (token < tokens && c + 2 * thread < columns);
                    two[turn][k] = here ? __ldg((const u32*)(from + (long long)token * X_PITCH + c)) : 0;
                }
            }
#pragma unroll
            for (int turn = 0; turn < TURNS && first + turn < ALL_TURNS; turn++) {
                const int tile = (first + turn) / OF_TILE, c = (first + turn) % OF_TILE * STAGING * 2;
                u32 even[4], odd[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    even[k] = __byte_perm(two[turn][2 * k], two[turn][2 * k + 1], 0x5410);
                    odd[k] = __byte_perm(two[turn][2 * k], two[turn][2 * k + 1], 0x7632);
                }
                u8* own = to + tile * PLANE_BYTES + c * 16;
                *(uint4*)own = make_uint4(even[0], even[1], even[2], even[3]);
                *(uint4*)(own + 16) = make_uint4(odd[0], odd[1], odd[2], odd[3]);
            }
        }
    }
#endif
};

// The B operands of a stage at a time.
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
