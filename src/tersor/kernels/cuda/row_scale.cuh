// What the sums of Stage::half lack, row by row: a power of two, and the exceptions.
#pragma once
#include "exceptions.cuh"
#include "stage.cuh"

// Of one row of a segment; the weights are in units of 2^unit.
struct RowScale {
#if LAYOUT == 0
    int base;

    __device__ __forceinline__ RowScale(const u8* record, int row, int) : base(record[BASES_AT + row]) {}
    __device__ __forceinline__ float sums() const { return row_scale(base); }
    // What an exception adds per activation to what stands in its place, times what.
    __device__ __forceinline__ float missing(u32 entry) const { return exception_value(entry) - row_filler(base); }
    __device__ __forceinline__ float exceptions() const { return 1; }
#else
    int unit;

    __device__ __forceinline__ RowScale(const u8*, int, int unit) : unit(unit) {}
    __device__ __forceinline__ float sums() const { return power_of_two(WEIGHT_SHIFT + unit); }
    __device__ __forceinline__ float missing(u32 entry) const { return from_f16(entry >> 16); }
    __device__ __forceinline__ float exceptions() const { return power_of_two(unit); }
#endif
};
