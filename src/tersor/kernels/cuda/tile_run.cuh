// The matrices of a product for many tokens, and the way through a run of units.
#pragma once
#include "tile_work.cuh"

constexpr int STRIP_BYTES = TILE_ROWS * HALF_COLS * 2, TILE_BYTES = STRIPS * STRIP_BYTES;  // of operands, 64 columns
constexpr int X_TILE_BYTES = TOKENS * HALF_COLS * 2;

// Somebody's place in a ring, and whether this round is an odd one.
template <int RING>
struct Turn {
    u32 number, parity = 0;
    __device__ __forceinline__ Turn(u32 number = 0) : number(number) {}
    __device__ __forceinline__ void advance(u32 slots = 1) {
        number += slots;
        if (number >= RING) number -= RING, parity ^= 1;
    }
};

struct Weights {
    const u8* stages;
    const int* places;
    const u8* records;
    int strips, halves;  // strips of the matrix, halves of a row
    Split split;

    // Before `unit`, if all begins at unit 0.
    __device__ __forceinline__ int stages_before(int unit) const {
        return unit / split.segments * ceil_div(halves, 2) + unit % split.segments * (SEGMENT_HALVES / 2);
    }
};

// The way through the segments of a block's run.
struct Cursor {
    int left, strip, token_tile, segment;  // left: units

    __device__ __forceinline__ Cursor(const Weights& w, int begin, int end, int strip) : left(end - begin) {
        const int tile = begin / w.split.segments;
        segment = begin % w.split.segments;
        token_tile = tile % w.split.token_tiles;
        this->strip = tile / w.split.token_tiles * STRIPS + strip;
    }
    __device__ __forceinline__ void advance(const Weights& w) {
        left--;
        if (++segment < w.split.segments) return;
        segment = 0;
        if (++token_tile < w.split.token_tiles) return;
        token_tile = 0;
        strip += STRIPS;
    }
    // In rows beyond the last strip it is decoded again; they are written nowhere.
    __device__ __forceinline__ int existing(const Weights& w) const { return min(strip, w.strips - 1); }
    __device__ __forceinline__ int halves(const Weights& w) const {
        return min(w.halves - segment * SEGMENT_HALVES, SEGMENT_HALVES);
    }
    // Of the record and its end, in units of ALIGN bytes.
    __device__ __forceinline__ int2 place(const Weights& w) const {
        if (left <= 0) return make_int2(0, 0);
        const int* entry = w.places + (long long)existing(w) * w.split.segments + segment;
        return make_int2(__ldg(entry), __ldg(entry + 1));
    }
};
