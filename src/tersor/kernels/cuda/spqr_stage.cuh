// One stage of the `spqr` layout (spqr/layout.py), 16 rows x 128 columns, to A operands of mma.m16n8k16.
//
// The same `Stage` as every layout's (window_stage.cuh). Both `half` and `half_bf16` give the weights times
// 2^-WEIGHT_SHIFT, in units: powers of two that an epilogue takes back.
#pragma once
#include "ptx.cuh"

constexpr int STAGE_COLS = 128, STAGE_BYTES = STAGE_SIZE;
constexpr int STEPS = 4;                                     // matrix instructions per half
constexpr int LOW_BITS = BITS < 4 ? BITS : 4, HIGH_BITS = BITS - LOW_BITS;  // of the planes
constexpr bool GRID_PER_HALF = GROUP == 16;
constexpr int GRIDS = GRID_PER_HALF ? 2 : 1;                 // a lane's groups of a row, in a stage
constexpr float OPERAND = 1.f / (1 << WEIGHT_SHIFT);

// First of the 16 columns of a stage that lanes (g, t) own in half h.
__device__ __forceinline__ constexpr int lane_column(int h, int t) { return 32 * t + 16 * h; }
// The inverse: 4 h + t of the lanes that own column c, from the column's sixteenth of the stage.
__device__ __forceinline__ constexpr int lane_slot(int sixteenth) { return sixteenth % 2 * 4 + sixteenth / 2; }

// The base at `place` in shared memory plus an outlier, where `here`.
__device__ __forceinline__ u16 patched(u32 entry, u16 base) {
    return to_bf16(from_bf16(base) + from_f16(entry >> 16) * OPERAND);
}
__device__ __forceinline__ void patch(u32 place, u32 entry, bool here) {
    if (here) store_shared_if(true, place, patched(entry, load_shared_u16(place)));
}

// A lane's words of a plane of F bits, both halves.
template <int F>
struct Plane {
    u32 word[2 * F];

    __device__ __forceinline__ void load(const u8* at, int lane) {
#pragma unroll
        for (int i = 0; i < 2 * F; i += 4) {
            if (2 * F - i >= 4) {
                const uint4 four = *(const uint4*)(at + 128 * i + lane * 16);
                word[i] = four.x, word[i + 1] = four.y, word[i + 2] = four.z, word[i + 3] = four.w;
            } else {
                const uint2 two = *(const uint2*)(at + 128 * i + lane * 8);
                word[i] = two.x, word[i + 1] = two.y;
            }
        }
    }
    // Codes of columns 2 n, 2 n + 1 of row rho of half h, at bit `to` of the halves of a word. All but `this` is known to
    // the compiler: a mask, and mostly a shift shared with other pairs.
    __device__ __forceinline__ u32 pair(int h, int rho, int n, int to) const {
        const u32* own = word + h * F;
        const u32 ones = ((1u << F) - 1) * 0x00010001u << to;
        if (F == 3 && n >= 6) {
            if (n == 7 && rho == 1) {
                const u32 first = own[0] >> (15 - to) & 0x00010001u << to;
                return and_or(own[2 % (2 * F)] >> (13 - to), 0x00040004u << to,
                              and_or(own[1 % (2 * F)] >> (14 - to), 0x00020002u << to, first));
            }
            return own[(rho ? 1 : n == 6 ? 0 : 2) % (2 * F)] >> (12 - to) & ones;
        }
        const int per_word = F == 3 ? 2 : 8 / F, bit = F * (n % per_word * 2 + rho);
        const u32 w = own[n / per_word];
        return (bit >= to ? w >> (bit - to & 31) : w << (to - bit & 31)) & ones;
    }
};

template <>
struct Plane<0> {
    __device__ __forceinline__ void load(const u8*, int) {}
    __device__ __forceinline__ u32 pair(int, int, int, int) const { return 0; }
};

// Factor a and offset b of a group, each in both halves, so scaled that one fused multiply-add makes two operands.
struct GroupGrid {
    u32 factor, offset;

    // From (scale, zero) as binary16; the codes will be at bit `at`.
    __device__ __forceinline__ void set(u32 statistics, int at) {
        const float scale = from_f16(statistics), zero = from_f16(statistics >> 16);
        const u32 a = to_bf16x2(scale, scale);
        const float b = __uint_as_float(a & 0xffff0000u) * (zero * -OPERAND);
        factor = multiply_bf16x2(a, (127 + 133 - WEIGHT_SHIFT - at) * 0x00800080u);
        offset = to_bf16x2(b, b);
    }
};

struct Stage {
    Plane<LOW_BITS> low;
    Plane<HIGH_BITS> high;
    GroupGrid grid[GRIDS][2];  // of rows g, g + 8

    static __device__ __forceinline__ constexpr int code_bit(int rho) { return BITS <= 4 ? rho * BITS : 0; }

    __device__ __forceinline__ void begin_segment(const u8*, int) {}
    __device__ __forceinline__ void open(const u8* stage, int lane) {
        low.load(stage, lane);
        high.load(stage + 256 * LOW_BITS, lane);
        u32 statistics[GRIDS][2];
        load_statistics(statistics, stage, lane);
#pragma unroll
        for (int k = 0; k < GRIDS; k++)
#pragma unroll
            for (int rho = 0; rho < 2; rho++) grid[k][rho].set(statistics[k][rho], code_bit(rho));
    }
    __device__ __forceinline__ void half(u32 (&a)[STEPS][4], int h) const {
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int rho = r % 2, n = 2 * i + r / 2;
                const GroupGrid& own = grid[GRID_PER_HALF ? h : 0][rho];
                u32 code = low.pair(h, rho, n, code_bit(rho));
                if (HIGH_BITS) code |= high.pair(h, rho, n, LOW_BITS);
                a[i][r] = fma_bf16x2(own.factor, code, own.offset);
            }
    }
    __device__ __forceinline__ void half_bf16(u32 (&a)[STEPS][4], int h) const { half(a, h); }

    // (scale, zero) of the groups of rows g and g + 8.
    static __device__ __forceinline__ void load_statistics(u32 (&of)[GRIDS][2], const u8* stage, int lane) {
        const u8* at = stage + GRIDS_AT;
#if LEVELS == 1 && GROUP == 128
        of[0][0] = *(const u32*)(at + lane / 4 * 4);
        of[0][1] = *(const u32*)(at + 32 + lane / 4 * 4);
#elif LEVELS == 1 && GROUP == 32
        const uint2 two = *(const uint2*)(at + lane * 8);
        of[0][0] = two.x, of[0][1] = two.y;
#elif LEVELS == 1
        const uint4 four = *(const uint4*)(at + lane * 16);
        of[0][0] = four.x, of[0][1] = four.y, of[1][0] = four.z, of[1][1] = four.w;
#elif GROUP == 32
        const u32 codes = *(const u16*)(at + lane * 2);
        const uint2 second = *(const uint2*)(stage + SECOND_AT + lane % 4 * 8);
        of[0][0] = first_level(codes, 0, second.x, second.y);
        of[0][1] = first_level(codes, 1, second.x, second.y);
#else
        const u32 codes = *(const u32*)(at + lane * 4);
        const uint4 second = *(const uint4*)(stage + SECOND_AT + lane % 4 * 16);
        of[0][0] = first_level(codes, 0, second.x, second.y);
        of[0][1] = first_level(codes, 1, second.x, second.y);
        of[1][0] = first_level(codes, 2, second.z, second.w);
        of[1][1] = first_level(codes, 3, second.z, second.w);
#endif
    }
    // Minima + steps * codes, both statistics at once; their codes are byte k: read as 1024 + scale code and
    // 1024 + 16 * zero code, which one exact multiply-add turns into the codes.
    static __device__ __forceinline__ u32 first_level(u32 codes, int k, u32 minima, u32 steps) {
        const u32 both = and_or(__byte_perm(codes, 0, k * 0x0101 | 0x4040), 0x00f0000fu, 0x64006400u);
        return fma_f16x2(steps, fma_f16x2(both, 0x2c003c00u, 0xd400e400u), minima);
    }
};
