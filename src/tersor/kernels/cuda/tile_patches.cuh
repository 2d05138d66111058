// A decoded stage of a strip, 16 x 128, on its way to operand rows in shared memory, and the exceptions that go on top.
#pragma once
#include "exceptions.cuh"
#include "tile_run.cuh"

// As much of a record as registers hold (`Patches`).
constexpr int RECORD_BYTES = RECORD_HEAD + KEPT * WARP * 4;
static_assert(RECORD_BYTES % 16 == 0, "bulk copies are of 16 bytes and multiples");

// That, of a lane.
struct RecordWords {
    u32 entries[KEPT];
    int count;  // of all entries

    // `bytes`: of the record, or of what is there of it.
    template <typename From>
    __device__ __forceinline__ void read(const u8* record, int bytes, int lane) {
        count = From::template read<u16>(record + (TILE_ROWS - 1) * 2);
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int at = RECORD_HEAD + (k * WARP + lane) * 4;
            entries[k] = at < bytes ? From::template read<u32>(record + at) : 0;
        }
    }
};

// Exceptions of a segment in registers: KEPT per lane, each with its place in a stage's operand rows. Any more are read
// from memory for every stage: right, but slow.
struct Patches {
    // Of a place: offset, of which a bit says in which tile, and stage.
    static constexpr u32 OFFSET = STRIP_BYTES - 1, TILE_AT = 10, STAGE_AT = 12, NOWHERE = 4 << STAGE_AT;
    static constexpr u32 STAGE = 7 << STAGE_AT, TILE = STAGE | 1 << TILE_AT;  // what must agree
    static_assert(STRIP_BYTES == 1 << STAGE_AT && SEGMENT_STAGES == 4 && SEGMENT_COLS == 512);
    u32 places[KEPT], values[KEPT];
    const u32* more;
    int count;  // of all

    static __device__ __forceinline__ u32 placed(u32 entry) {
        const u32 column = exception_column(entry), row = exception_row(entry);
        const u32 rows = row / 8 << 11 | row % 8 << 7;
        return (column / STAGE_COLS << STAGE_AT | column / HALF_COLS % 2 << TILE_AT | rows | column % HALF_COLS * 2) ^ row % 8 << 4;
    }
    // Of the record in `memory`.
    __device__ __forceinline__ void take(const RecordWords& record, const u8* memory, int lane) {
        count = record.count;
        const int left = count - lane;  // more than k x WARP, if this lane has a k-th
        more = (const u32*)(memory + RECORD_HEAD);
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const u32 entry = record.entries[k];  // beyond the last one: anything
            values[k] = entry >> 16;
            places[k] = k * WARP < left ? placed(entry) : NOWHERE;
        }
    }
    // `record` in shared memory holds the first RECORD_BYTES of the one in `memory`.
    __device__ __forceinline__ void load(const u8* record, const u8* memory, int lane) {
        RecordWords words;
        words.read<Near>(record, RECORD_BYTES, lane);
        take(words, memory, lane);
    }
    // Overwrite a stage's exceptions in its rows at `strip`, a multiple of STRIP_BYTES, or those of one of its tiles.
    __device__ __forceinline__ void apply(u32 strip, int stage, int lane) const { put<STAGE>(strip, stage << STAGE_AT, lane); }
    __device__ __forceinline__ void apply(u32 strip, int stage, int tile, int lane) const {
        put<TILE>(strip, stage << STAGE_AT | tile << TILE_AT, lane);
    }

private:
    template <u32 MASK>
    __device__ __forceinline__ void put(u32 strip, u32 which, int lane) const {
        u32 to[KEPT];
        bool here[KEPT];
        u16 base[KEPT];
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            to[k] = and_or(places[k], OFFSET, strip), here[k] = !differ(places[k], which, MASK);
            base[k] = unpatched(to[k], here[k]);
        }
#pragma unroll
        for (int k = 0; k < KEPT; k++) patch(to[k], values[k] << 16, base[k], here[k]);
        if (count > KEPT * WARP) {
#pragma unroll 1
            for (int e = KEPT * WARP + lane; e < count; e += WARP) {
                const u32 entry = __ldg(more + e), place = placed(entry), at = and_or(place, OFFSET, strip);
                const bool here = !differ(place, which, MASK);
                patch(at, entry, unpatched(at, here), here);
            }
        }
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

// Where a lane's pieces of a stage go in the operand rows of a strip: two of row g, two of row g + 8 for each half. Lanes of
// both tiles would meet in the same banks; those of the second have their halves turned.
struct Pieces {
    static constexpr u32 TILE_STEP = 8 * 128, EIGHT_ROWS = 2 * TILE_STEP;
    u32 first, second;  // of half 0
    bool turned;        // they go to the second tile, where they are SPREAD

    __device__ __forceinline__ Pieces(int lane) {
        const int g = lane / 4, t = lane % 4;
        turned = lane_column(0, t) >= HALF_COLS;
        const int column = lane_column(turned, t) % HALF_COLS;
        first = turned * TILE_STEP + g * 128 + ((column / 8 ^ g) << 4), second = first ^ 16;
        asm volatile("" : "+r"(first), "+r"(second));  // kept, not reckoned again and again
    }
    // Of half `h`.
    __device__ __forceinline__ void store(u32 strip, const u32 (&a)[4][4], int h) const {
        const u32 on = lane_column(h, 0) % HALF_COLS / 8 << 4, rows = strip + lane_column(h, 0) / HALF_COLS * TILE_STEP;
        store_shared_16(rows + (first ^ on), a[0][0], a[0][2], a[1][0], a[1][2]);
        store_shared_16(rows + (second ^ on), a[2][0], a[2][2], a[3][0], a[3][2]);
        store_shared_16(rows + (first ^ on) + EIGHT_ROWS, a[0][1], a[0][3], a[1][1], a[1][3]);
        store_shared_16(rows + (second ^ on) + EIGHT_ROWS, a[2][1], a[2][3], a[3][1], a[3][3]);
    }
    // All that goes to tile `n`; `a` is both halves.
    __device__ __forceinline__ void store_tile(u32 strip, const u32 (&a)[2][4][4], int n) const {
        if (!SPREAD) {
            store(strip, a[n], n);
        } else if (turned == n) {
            store(strip, a[0], 0);
            store(strip, a[1], 1);
        }
    }
};

// They are reckoned here, whatever the compiler would rather do.
__device__ __forceinline__ void keep(u32 (&a)[4][4]) {
#pragma unroll
    for (u32(&step)[4] : a)
#pragma unroll
        for (u32& pair : step) asm volatile("" : "+r"(pair));
}
__device__ __forceinline__ void zero(u32 (&a)[4][4]) {
#pragma unroll
    for (u32(&step)[4] : a)
#pragma unroll
        for (u32& pair : step) pair = 0;
}
