// The decoding warps of tile_linear: 16 rows of a tile each, from compressed stages to finished operand rows.
//
// A decoder does nothing but decode: where stages and records stand in memory is the business of tile_feed.cuh, which
// says in a stage's `note` what to know of it.
#pragma once
#include "exceptions.cuh"
#include "stage.cuh"
#include "tile_rings.cuh"

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
        // The columns of a stage in the order of the operand: the sixteens of its lanes, one half after the other.
        const u32 k = column / STAGE_COLS * STAGE_COLS | lane_slot(column / 16 % 8) * 16 | column % 16;
        return (k / HALF_COLS << 11 | row << 7 | k % HALF_COLS * 2) ^ row % 8 << 4;
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

__device__ __forceinline__ void zero(u32 (&a)[4][4]) {
#pragma unroll
    for (u32(&step)[4] : a)
#pragma unroll
        for (u32& pair : step) pair = 0;
}

// One of DECODERS warps; those of a strip take turns. `stages`: of the run.
__device__ __forceinline__ void decode_tiles(const Weights& w, const u8* areas, u32 operands, const Barriers& barriers,
                                             int decoder, int stages) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int strip = decoder % STRIPS, part = decoder / STRIPS;
    // Where this lane's two pieces of row g go; those of row g + 8 are 1024 bytes on.
    u32 piece = g * 128 + ((2 * t ^ g) << 4), other = piece ^ 16;
    asm volatile("" : "+r"(piece), "+r"(other));  // kept, not reckoned again and again
    areas += strip * AREA_BYTES;
    operands += strip * STRIP_BYTES;
    Turn<STAGES> in(part);
    Turn<A_SLOTS> out(part * STAGE_STEPS);
    Stage stage;
    Patches patches;
#pragma unroll 1
    for (int left = stages - part; left > 0; left -= PARTS) {
        const u8* area = areas + in.number * (STRIPS * AREA_BYTES);
        const u32 full = barriers.stage_full + in.number * 8, free = full + STAGES * 8;
        mbarrier_wait(full, in.parity);
        in.advance(PARTS);
        const uint2 note = *(const uint2*)(area + NOTE_AT);
        const int first = note.x & 0xf;
        if (first / 2 < PARTS) {
            stage.begin_segment(area + RECORD_AT, g);
            patches.load(area + RECORD_AT, w.records + (long long)note.y * ALIGN, lane);
        }
        stage.open(area, lane);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            constexpr int LAST = STEP_HALVES - 1;
            const u32 filled = barriers.a_full + out.number * 8;
            const u32 rows = operands + out.number * A_BYTES + h % STEP_HALVES * TILE_BYTES;
            u32 a[4][4];
            if (h == 0 || note.x & WHOLE)
                stage.half_bf16(a, h);
            else
                zero(a);
            if (h == 1) {  // all of the area is in registers
                __syncwarp();
                if (lane == 0) mbarrier_arrive(free);
            }
            if (h % STEP_HALVES == 0) mbarrier_wait(filled + A_SLOTS * 8, out.parity ^ 1);
            store_shared_16(rows + piece, a[0][0], a[0][2], a[1][0], a[1][2]);
            store_shared_16(rows + other, a[2][0], a[2][2], a[3][0], a[3][2]);
            store_shared_16(rows + piece + 1024, a[0][1], a[0][3], a[1][1], a[1][3]);
            store_shared_16(rows + other + 1024, a[2][1], a[2][3], a[3][1], a[3][3]);
            if (h % STEP_HALVES < LAST) continue;
            __syncwarp();  // the fillers are there before the exceptions
#pragma unroll
            for (int i = LAST; i >= 0; i--) patches.apply(rows - i * TILE_BYTES, first + h - i, lane);
            shared_stores_done();
            __syncwarp();
            if (lane == 0) mbarrier_arrive(filled);
            out.advance(h == 1 ? (PARTS - 1) * STAGE_STEPS + 1 : 1);
        }
    }
}
