// A decoded half of a strip, 16 x 64, on its way to operand rows in shared memory, and the exceptions that go on top.
#pragma once
#include "exceptions.cuh"
#include "tile_run.cuh"

// Areas hold a stage, and behind it a record: as much of it as registers hold (`Patches`).
constexpr int RECORD_AT = STAGE_BYTES, RECORD_BYTES = RECORD_HEAD + KEPT * WARP * 4;
static_assert(STAGE_BYTES % 16 == 0 && RECORD_BYTES % 16 == 0, "bulk copies are of 16 bytes and multiples");

// Exceptions of a segment in registers: KEPT per lane, each with its place in a half's operand rows. Any more are read
// from memory for every half: right, but slow.
struct Patches {
    static constexpr u32 OFFSET = STRIP_BYTES - 1, HALF = 0x7800, NOWHERE = 0x7800;
    static_assert(STRIP_BYTES == 2048 && SEGMENT_HALVES < 16, "half 4 bits, offset 11");
    u32 places[KEPT], values[KEPT];
    const u32* more;
    int count;  // of all

    // The half of an entry and its offset there.
    static __device__ __forceinline__ u32 placed(u32 entry) {
        const u32 column = exception_column(entry), row = exception_row(entry);
        return (column / HALF_COLS << 11 | row << 7 | column % HALF_COLS * 2) ^ row % 8 << 4;
    }
    // `record` in shared memory holds the first KEPT * WARP entries of the one in `memory`.
    __device__ __forceinline__ void load(const u8* record, const u8* memory, int lane) {
        count = ((const u16*)record)[TILE_ROWS - 1];
        more = (const u32*)(memory + RECORD_HEAD);
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int e = k * WARP + lane;
            const u32 entry = ((const u32*)(record + RECORD_HEAD))[e];  // beyond the last one: anything
            values[k] = entry >> 16;
            places[k] = e < count ? placed(entry) : NOWHERE;
        }
    }
    // Overwrite the exceptions of a half in its rows at `strip` (a multiple of 2048).
    __device__ __forceinline__ void apply(u32 strip, int half, int lane) const {
#pragma unroll
        for (int k = 0; k < KEPT; k++) put(places[k], values[k], strip, half);
        if (count > KEPT * WARP) {
#pragma unroll 1
            for (int e = KEPT * WARP + lane; e < count; e += WARP) {
                const u32 entry = __ldg(more + e);
                put(placed(entry), entry >> 16, strip, half);
            }
        }
    }
    static __device__ __forceinline__ void put(u32 place, u32 value, u32 strip, int half) {
        patch(and_or(place, OFFSET, strip), value << 16, !differ(place, half << 11, HALF));
    }
    // Whether a and b differ in the bits of `mask`, by one instruction.
    static __device__ __forceinline__ bool differ(u32 a, u32 b, u32 mask) {
        u32 yes;
        asm("{\n.reg .pred p;\n.reg .b32 d;\n"
            "lop3.or.b32 d|p, %1, %2, %3, 0x28, 0;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(yes)
            : "r"(a), "r"(b), "r"(mask));
        return yes;
    }
};

// Whether a half's sixteens, which the layout gives to lanes, belong to both operand tiles of a stage: to the first those
// of lanes with t < 2. Otherwise a half is a tile.
constexpr bool SPREAD = lane_column(0, 3) >= HALF_COLS;

// Where a lane's pieces of a half go in the operand rows of a strip: two of row g, two of row g + 8.
struct Pieces {
    u32 first, second;  // of half 0
    int tile;           // to which they go, where they are SPREAD
    __device__ __forceinline__ Pieces(int lane) {
        const int g = lane / 4, t = lane % 4;
        first = g * 128 + ((lane_column(0, t) % HALF_COLS / 8 ^ g) << 4), second = first ^ 16;
        tile = lane_column(0, t) / HALF_COLS;
        asm volatile("" : "+r"(first), "+r"(second));  // kept, not reckoned again and again
    }
    // Of half `h`; `rows`: in the tile to which they go.
    __device__ __forceinline__ void store(u32 rows, const u32 (&a)[4][4], int h) const {
        const u32 on = lane_column(h, 0) % HALF_COLS / 8 << 4;
        store_shared_16(rows + (first ^ on), a[0][0], a[0][2], a[1][0], a[1][2]);
        store_shared_16(rows + (second ^ on), a[2][0], a[2][2], a[3][0], a[3][2]);
        store_shared_16(rows + (first ^ on) + 1024, a[0][1], a[0][3], a[1][1], a[1][3]);
        store_shared_16(rows + (second ^ on) + 1024, a[2][1], a[2][3], a[3][1], a[3][3]);
    }
    // All that goes to tile `n` of a stage, of which `a` is both halves.
    __device__ __forceinline__ void store_tile(u32 rows, const u32 (&a)[2][4][4], int n) const {
        if (!SPREAD) {
            store(rows, a[n], n);
        } else if (tile == n) {
            store(rows, a[0], 0);
            store(rows, a[1], 1);
        }
    }
};

__device__ __forceinline__ void zero(u32 (&a)[4][4]) {
#pragma unroll
    for (u32(&step)[4] : a)
#pragma unroll
        for (u32& pair : step) pair = 0;
}
