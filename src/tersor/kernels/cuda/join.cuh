// Symbols and raw bytes back to elements, eight at a time: 16 bytes.
#pragma once
#include "ptx.cuh"

// Two bfloat16 from bytes I and I + 1 (of eight: low word, high word) of exponents and of sign-and-mantissa.
template <int I>
__device__ __forceinline__ u32 join_two_bf16(u32 exponents, u32 raw) {
    const u32 twice = __byte_perm(raw, 0, I % 4 ? 0x3322 : 0x1100);
    return and_or(twice, 0x807f807fu, __byte_perm(exponents, 0, I % 4 ? 0x4342 : 0x4140) << 7);
}
__device__ __forceinline__ uint4 join_eight_bf16(u32 low, u32 high, uint2 raw) {
    return make_uint4(join_two_bf16<0>(low, raw.x), join_two_bf16<2>(low, raw.x), join_two_bf16<4>(high, raw.y),
                      join_two_bf16<6>(high, raw.y));
}
// float16: the upper byte is the symbol, the lower one is raw.
__device__ __forceinline__ uint4 join_eight_f16(u32 low, u32 high, uint2 raw) {
    return make_uint4(__byte_perm(raw.x, low, 0x5140), __byte_perm(raw.x, low, 0x7362),
                      __byte_perm(raw.y, high, 0x5140), __byte_perm(raw.y, high, 0x7362));
}
__device__ __forceinline__ u16 join_bf16(u32 exponent, u32 raw) {
    return (raw & 0x80) << 8 | exponent << 7 | raw & 0x7f;
}
