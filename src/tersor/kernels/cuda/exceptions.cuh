// The exceptions of one segment, from its record (fused/layout.py).
#pragma once
#include "ptx.cuh"

// One row's part of a record.
struct RowExceptions {
    const u32* entries;
    int begin, end;

    __device__ __forceinline__ RowExceptions(const u8* record, int row) {
        const u16* running = (const u16*)record;
        begin = row ? running[row - 1] : 0;
        end = running[row];
        entries = (const u32*)(record + RECORD_HEAD);
    }
};

// Column and row within the segment, value.
__device__ __forceinline__ u32 exception_column(u32 entry) { return entry & (SEGMENT_COLS - 1); }
__device__ __forceinline__ u32 exception_row(u32 entry) { return entry >> ROW_SHIFT & (TILE_ROWS - 1); }
__device__ __forceinline__ float exception_value(u32 entry) { return __uint_as_float(entry & 0xffff0000u); }
__device__ __forceinline__ u16 exception_bits(u32 entry) { return entry >> 16; }
