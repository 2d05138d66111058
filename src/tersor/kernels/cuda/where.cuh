// Where a layout's words are read from: from where they are near, or from memory, long before they are needed.
#pragma once
#include "ptx.cuh"

struct Near {
    template <typename T>
    static __device__ __forceinline__ T read(const u8* from) { return *(const T*)from; }
};
struct Far {
    template <typename T>
    static __device__ __forceinline__ T read(const u8* from) { return load_stream((const T*)from); }
};
