// One stage of the `spqr` layout (spqr/layout.py), 16 rows x 128 columns, to A operands of mma.m16n8k16.
//
// The same `Stage` as every layout's (window_stage.cuh). Both `half` and `half_bf16` give the weights times
// 2^-WEIGHT_SHIFT, in units: powers of two that an epilogue takes back.
#pragma once
#include "where.cuh"

constexpr int STAGE_COLS = 128, STAGE_BYTES = STAGE_SIZE;
constexpr int STEPS = 4;                                     // matrix instructions per half
constexpr int LOW_BITS = BITS < 4 ? BITS : 4, HIGH_BITS = BITS - LOW_BITS;  // of the planes
constexpr int GRIDS = GROUP == 16 ? 2 : 1;                   // a lane's groups of a row, in a stage
constexpr float OPERAND = 1.f / (1 << WEIGHT_SHIFT);

// First of the 16 columns of a stage that lanes (g, t) own in half h.
__device__ __forceinline__ constexpr int lane_column(int h, int t) { return 32 * t + 16 * h; }

// The base at `place` in shared memory, where `here`; and it plus an outlier.
__device__ __forceinline__ u16 unpatched(u32 place, bool here) { return load_shared_u16_if(here, place); }
__device__ __forceinline__ u16 patched(u32 entry, u16 base) {
    return to_bf16(from_bf16(base) + from_f16(entry >> 16) * OPERAND);
}
__device__ __forceinline__ void patch(u32 place, u32 entry, u16 base, bool here) {
    store_shared_if(here, place, patched(entry, base));
}

// a and b change places where `really`.
__device__ __forceinline__ void swap_if(bool really, u32& a, u32& b) {
    const u32 first = really ? b : a;
    b = really ? a : b, a = first;
}

// A lane's words of a plane of F bits, both halves; `turned`: the second half first.
template <int F>
struct Plane {
    u32 word[2 * F];

    template <typename From>
    __device__ __forceinline__ void read(const u8* at, int lane, bool turned) {
        constexpr bool BY_PLACE = F % 4 == 0;  // halves lie apart
        at += lane * 16;
#pragma unroll
        for (int i = 0; i < 2 * F; i += 4) {
            if (2 * F - i >= 4) {
                const uint4 four = From::template read<uint4>(at + (BY_PLACE && turned ? (i + F) % (2 * F) : i) * 128);
                word[i] = four.x, word[i + 1] = four.y, word[i + 2] = four.z, word[i + 3] = four.w;
            } else {
                const uint2 two = From::template read<uint2>(at + 128 * i - lane * 8);
                word[i] = two.x, word[i + 1] = two.y;
            }
        }
        if (!BY_PLACE)
#pragma unroll
            for (int i = 0; i < F; i++) swap_if(turned, word[i], word[F + i]);
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
    template <typename>
    __device__ __forceinline__ void read(const u8*, int, bool) {}
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

// What a stage holds of a lane's groups: those of rows g and g + 8, in one or both halves.
struct Statistics {
#if LEVELS == 2
    u32 codes;   // a byte per group
    uint4 grid;  // (minima, steps) of the strip's group or groups, pairs of scale and zero

    template <typename From>
    __device__ __forceinline__ void read(const u8* stage, int lane, bool turned) {
        const u8* second = stage + SECOND_AT + lane % 4 * GRIDS * 8;
        if (GRIDS == 2) {
            codes = From::template read<u32>(stage + GRIDS_AT + lane * 4);
            grid = From::template read<uint4>(second);
            codes = turned ? codes >> 16 | codes << 16 : codes;
            swap_if(turned, grid.x, grid.z);
            swap_if(turned, grid.y, grid.w);
        } else {
            codes = From::template read<u16>(stage + GRIDS_AT + lane * 2);
            const uint2 own = From::template read<uint2>(second);
            grid = make_uint4(own.x, own.y, 0, 0);
        }
    }
    // (scale, zero) of row rho in half h: minima + steps * codes, both at once. Byte k is read as 1024 + scale code and
    // 1024 + 16 * zero code, which one exact multiply-add turns into the codes.
    __device__ __forceinline__ u32 of(int h, int rho) const {
        const int k = 2 * h + rho;
        const u32 both = and_or(__byte_perm(codes, 0, k * 0x0101 | 0x4040), 0x00f0000fu, 0x64006400u);
        const u32 exact = fma_f16x2(both, 0x2c003c00u, 0xd400e400u);
        return h ? fma_f16x2(grid.w, exact, grid.z) : fma_f16x2(grid.y, exact, grid.x);
    }
#else
    u32 own[GRIDS][2];

    template <typename From>
    __device__ __forceinline__ void read(const u8* stage, int lane, bool turned) {
        const u8* at = stage + GRIDS_AT;
        if (GROUP == 128) {
            own[0][0] = From::template read<u32>(at + lane / 4 * 4);
            own[0][1] = From::template read<u32>(at + lane / 4 * 4 + 32);
        } else {
#pragma unroll
            for (int h = 0; h < GRIDS; h++) {
                const uint2 pair = From::template read<uint2>(at + (lane * GRIDS + h) * 8);
                own[h][0] = pair.x, own[h][1] = pair.y;
            }
            if (GRIDS == 2)
#pragma unroll
                for (int rho = 0; rho < 2; rho++) swap_if(turned, own[0][rho], own[GRIDS - 1][rho]);
        }
    }
    __device__ __forceinline__ u32 of(int h, int rho) const { return own[h][rho]; }
#endif
};

// A record says nothing of rows.
struct RowNotes {
    template <typename>
    __device__ __forceinline__ void read(const u8*, int) {}
};

struct Stage {
    Plane<LOW_BITS> low;
    Plane<HIGH_BITS> high;
    Statistics statistics;
    GroupGrid grid[2];  // of rows g, g + 8, where they are the same in both halves

    static __device__ __forceinline__ constexpr int code_bit(int rho) { return BITS <= 4 ? rho * BITS : 0; }

    __device__ __forceinline__ void begin_segment(const RowNotes&) {}
    __device__ __forceinline__ void begin_segment(const u8*, int) {}
    // `turned`: this lane calls the second half the first.
    __device__ __forceinline__ void open(const u8* stage, int lane, bool turned = false) {
        read<Near>(stage, lane, turned);
        if (GRIDS == 1) set_grid(0);
    }
    __device__ __forceinline__ void half(u32 (&a)[STEPS][4], int h) {
        if (GRIDS == 2) set_grid(h);
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int rho = r % 2, n = 2 * i + r / 2;
                u32 code = low.pair(h, rho, n, code_bit(rho));
                if (HIGH_BITS) code |= high.pair(h, rho, n, LOW_BITS);
                a[i][r] = fma_bf16x2(grid[rho].factor, code, grid[rho].offset);
            }
    }
    __device__ __forceinline__ void half_bf16(u32 (&a)[STEPS][4], int h) { half(a, h); }

protected:
    template <typename From>
    __device__ __forceinline__ void read(const u8* stage, int lane, bool turned) {
        low.template read<From>(stage, lane, turned);
        high.template read<From>(stage + 256 * LOW_BITS, lane, turned);
        statistics.template read<From>(stage, lane, turned);
    }
    __device__ __forceinline__ void set_grid(int h) {
#pragma unroll
        for (int rho = 0; rho < 2; rho++) grid[rho].set(statistics.of(h, rho), code_bit(rho));
    }
};

// The same, its words asked for in memory and kept in registers.
struct FarStage : Stage {
    __device__ __forceinline__ void ask(const u8* stage, int lane, bool turned, bool) { read<Far>(stage, lane, turned); }
    __device__ __forceinline__ void open() {
        if (GRIDS == 1) set_grid(0);
    }
};
