// One stage of the `fast` layout, 16 rows x 128 columns, to A operands of mma.m16n8k16.
//
// Every layout that is multiplied offers the same `Stage`, so the products know nothing of bits: `half` gives a
// lane's operands of four steps, scaled by a power of two per row that an epilogue takes back; `half_bf16` gives the
// weights themselves. `FarStage` is the same, its words asked for in memory ahead. `open` with `turned` has a lane take its
// second half first, where halves are spread over operand tiles.
#pragma once
#include "window_fragment.cuh"

constexpr int STAGE_COLS = 128, STAGE_BYTES = 2 * BLOCK_BYTES;

// First of the 16 columns of a stage that lanes (g, t) own in half h.
__device__ __forceinline__ constexpr int lane_column(int h, int t) { return 64 * h + 16 * t; }

// An exception's place in shared memory, where `here`: what of it must be known to patch it, and that.
__device__ __forceinline__ u16 unpatched(u32, bool) { return 0; }
__device__ __forceinline__ void patch(u32 place, u32 entry, u16, bool here) { store_shared_if(here, place, entry >> 16); }

// What a record says of a lane's rows, g and g + 8: their bases.
struct RowNotes {
    u8 low, high;

    template <typename From>
    __device__ __forceinline__ void read(const u8* record, int g) {
        low = From::template read<u8>(record + BASES_AT + g), high = From::template read<u8>(record + BASES_AT + g + 8);
    }
};

struct Stage {
    const u8* at;
    u32 low, high;  // from exponent 120 + code to base + code, both halves of a pair at once: rows g, g + 8
    int lane;

    // For `half_bf16`.
    __device__ __forceinline__ void begin_segment(const RowNotes& notes) {
        low = notes.low * 0x00800080u - CODE_BASE, high = notes.high * 0x00800080u - CODE_BASE;
    }
    __device__ __forceinline__ void begin_segment(const u8* record, int g) {
        RowNotes notes;
        notes.read<Near>(record, g);
        begin_segment(notes);
    }
    __device__ __forceinline__ void open(const u8* stage, int l, bool = false) { at = stage, lane = l; }
    __device__ __forceinline__ void half(u32 (&a)[STEPS][4], int h) const { decode_block(a, at + h * BLOCK_BYTES, lane); }
    __device__ __forceinline__ void half_bf16(u32 (&a)[STEPS][4], int h) const {
        half(a, h);
        raise(a);
    }

protected:
    __device__ __forceinline__ void raise(u32 (&a)[STEPS][4]) const {
#pragma unroll
        for (int i = 0; i < STEPS; i++) a[i][0] += low, a[i][1] += high, a[i][2] += low, a[i][3] += high;
    }
};

// The same, its words asked for in memory and kept in registers; `whole`: it has both halves.
struct FarStage : Stage {
    BlockWords words[2];

    __device__ __forceinline__ void ask(const u8* stage, int lane, bool, bool whole) {
        words[0].read<Far>(stage, lane);
        if (whole) words[1].read<Far>(stage + BLOCK_BYTES, lane);
    }
    __device__ __forceinline__ void open() {}
    __device__ __forceinline__ void half_bf16(u32 (&a)[STEPS][4], int h) const {
        decode_block(a, words[h]);
        raise(a);
    }
};
