// Decoding prefix codes by look-up: the table in shared memory, the bits of a stream, the symbols of a lane.
//
// A table of 4096 entries, indexed by the next 12 bits of a stream, gives up to four symbols at once: at 2.6 bits a
// symbol it nearly always does, so a stream of 128 takes about 35 look-ups. An entry is two words:
//
//   x   symbols, first lowest, zero where there is none
//   y   bits 0..7: bits that they take, 1 to 12; bits 8..15: 8 * how many they are;
//       bits 16..27: at which bit the second, third and fourth begin, four bits each, 15 where there is none
//
// and y = 0 where the first code has more than 12 bits. Integer instructions count, so shift counts are used as they
// stand (shifts look at five bits only) and a word of symbols is stored after every look-up, full or not.
#pragma once
#include "ptx.cuh"

constexpr int TABLE = 1 << MAX_CODE_BITS;

struct Expansion {
    u16 single[TABLE];  // per index its first code: symbol | length << 8, length 0 if it is longer than the index
    // Its first two: symbols | length of both << 16 | of the first << 20 | begin of the second << 24 | how many << 28.
    // Lengths are 15 if there is none, the begin is 15 if there is no second.
    u32 pairs[TABLE];
};

// Fill `table` from `single`: first pairs, then pairs of pairs.
__device__ __forceinline__ void expand_table(uint2* table, Expansion& e) {
#pragma unroll 4
    for (int i = threadIdx.x; i < TABLE; i += blockDim.x) {
        const u32 one = e.single[i], first = one >> 8, next = e.single[i >> first], both = first + (next >> 8);
        const bool second = next >> 8 && both <= MAX_CODE_BITS;
        const u32 alone = first << 16 | 15 << 24 | 1 << 28;
        const u32 pair = second ? next << 8 & 0xff00 | both << 16 | first << 24 | 2 << 28 : alone;
        e.pairs[i] = first ? one & 0xff | first << 20 | pair : 0x0fff0000;
    }
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < TABLE; i += blockDim.x) {
        const u32 a = e.pairs[i], bits = a >> 16 & 15, b = e.pairs[i >> bits];
        const u32 to_third = bits + (b >> 20 & 15), to_fourth = bits + (b >> 16 & 15);
        const bool third = to_third <= MAX_CODE_BITS, fourth = to_fourth <= MAX_CODE_BITS && b >> 29;
        const u32 symbols = __byte_perm(a, b, 0x5410) & (fourth ? ~0u : third ? 0xffffff : 0xffff);
        const u32 all = fourth ? to_fourth : third ? to_third : bits, count = (a >> 28) + third + fourth;
        const u32 begins = a >> 24 & 15 | (third ? bits : 15) << 4 | (fourth ? to_third : 15) << 8;
        table[i] = make_uint2(symbols, a >> 28 ? all | count << 11 | begins << 16 : 0);
    }
}
__device__ __forceinline__ u32 bits_of(u32 y) { return y & 0xff; }
__device__ __forceinline__ u32 symbol_bits_of(u32 y) { return __byte_perm(y, 0, 0x4441); }  // 8 * how many
__device__ __forceinline__ u32 begin_of(u32 y, int k) { return y >> (12 + 4 * k) & 15; }     // of the (k + 1)th

__device__ __forceinline__ uint2 load_shared_8(u32 address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}
__device__ __forceinline__ u32 load_shared_4(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}
__device__ __forceinline__ void store_shared_4(u32 address, u32 v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

// Where a stream's bits come from: whole words, one after the other.
struct FromMemory {
    const u32 *next, *last;  // not read past `last`
    __device__ __forceinline__ u32 word() {
        const u32 v = __ldg(next);
        next += next < last;
        return v;
    }
};
struct FromShared {
    u32 next;  // address
    __device__ __forceinline__ u32 word() {
        const u32 v = load_shared_4(next);
        next += 4;
        return v;
    }
};

// The next `have` bits of a stream, first lowest.
template <typename Words>
struct Bits {
    Words words;
    u32 low, high = 0;
    int have;
    u32 coming;  // one word ahead, so that nobody waits for it

    __device__ __forceinline__ Bits(Words from, int skip) : words(from) {
        low = words.word() >> skip;
        have = 32 - skip;
        coming = words.word();
    }
    // Have 32 bits at least.
    __device__ __forceinline__ void refill() {
        if (have < 32) {
            low |= coming << have;
            high = __funnelshift_l(coming, 0, have);
            have += 32;
            coming = words.word();
        }
    }
    // The table's entry for what comes next; `table` is an address of shared memory.
    __device__ __forceinline__ uint2 look_up(u32 table) const {
        return load_shared_8(table + (low << 3 & (TABLE - 1) << 3));
    }
    __device__ __forceinline__ void take(u32 y) {
        low = __funnelshift_r(low, high, y);
        high = __funnelshift_r(high, 0, y);
        have -= bits_of(y);
    }
};

// A lane's symbols in shared memory. Up to 7 bytes of noise follow them; if LAST, what lies behind that word goes to it.
template <int LAST = 0>
struct Row {
    u32 out;          // address
    u32 waiting = 0;  // symbols of an unfinished word
    u32 done = 0;     // bits of symbols

    __device__ __forceinline__ u32 here() const {
        const u32 at = done >> 3 & ~3u;
        return out + (LAST ? min(at, LAST * 4u) : at);
    }
    __device__ __forceinline__ void put(u32 symbols, u32 symbol_bits) {
        const u32 full = waiting | __funnelshift_l(0, symbols, done), rest = __funnelshift_l(symbols, 0, done);
        store_shared_4(here(), full);
        const u32 before = done;
        done += symbol_bits;
        waiting = (before ^ done) & 32 ? rest : full;
    }
    __device__ __forceinline__ void finish() const { store_shared_4(here(), waiting); }
};
