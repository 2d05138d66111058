// The matrices of a product for many tokens, and the way through a run of units.
#pragma once
#include "tile_work.cuh"

constexpr int STRIP_BYTES = TILE_ROWS * STAGE_COLS * 2, A_BYTES = STRIPS * STRIP_BYTES;  // of operands, of a stage
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
    // The place so many before this one, fewer than there are.
    __device__ __forceinline__ u32 before(u32 slots) const { return number >= slots ? number - slots : number + RING - slots; }
};

struct Weights {
    const u8* stages;
    const int* places;
    const u8* records;
    int strips, halves, segments;  // strips of the matrix; halves and segments of a row
    Split split;

    __device__ __forceinline__ Weights(const u8* stages, const int* places, const u8* records, int rows, int tokens, int halves,
                                       int chunk)
        : stages(stages), places(places), records(records), strips(ceil_div(rows, TILE_ROWS)), halves(halves),
          segments(ceil_div(halves, SEGMENT_HALVES)), split(rows, tokens, halves, chunk) {}
};

// The way through a strip of every tile, stage by stage. It goes on behind the run's end, and stays in the matrix: in rows
// beyond the last strip that is decoded again, and written nowhere.
struct Walk {
    int stage, token_tile, strip;  // stage: of the row

    __device__ __forceinline__ Walk(const Weights& w, int begin, int strip) {
        const int tile = begin / w.split.stages;
        stage = begin % w.split.stages;
        token_tile = tile % w.split.token_tiles;
        this->strip = tile / w.split.token_tiles * STRIPS + strip;
    }
    // Returns whether it comes to another row.
    __device__ __forceinline__ bool advance(const Weights& w, int stages) {
        stage += stages;
        const bool ends = stage >= w.split.stages;
        while (stage >= w.split.stages) {
            stage -= w.split.stages;
            if (++token_tile == w.split.token_tiles) token_tile = 0, strip += STRIPS;
        }
        return ends;
    }
    // From here on, in this segment.
    __device__ __forceinline__ int of_segment(const Weights& w) const {
        return min(SEGMENT_STAGES - stage % SEGMENT_STAGES, w.split.stages - stage);
    }
    __device__ __forceinline__ bool whole(const Weights& w) const { return 2 * stage + 1 < w.halves; }  // it has both halves
    __device__ __forceinline__ int existing(const Weights& w) const { return min(strip, w.strips - 1); }
    __device__ __forceinline__ const u8* stored(const Weights& w) const {
        return w.stages + ((long long)existing(w) * w.halves + 2 * stage) * HALF_BYTES;
    }
    // Of the segment's record: its place is there, and its end in what follows; in units of ALIGN bytes.
    __device__ __forceinline__ const int* entry(const Weights& w) const {
        return w.places + (long long)existing(w) * w.segments + stage / SEGMENT_STAGES;
    }
};

// The way through a block's run, segment by segment: as much of each as the run has.
struct Cursor : Walk {
    int left;  // stages of the run

    __device__ __forceinline__ Cursor(const Weights& w, int begin, int end, int strip) : Walk(w, begin, strip), left(end - begin) {}
    __device__ __forceinline__ void advance(const Weights& w) {
        const int done = stages(w);
        left -= done, stage += done;
        if (stage < w.split.stages) return;
        stage = 0;
        if (++token_tile < w.split.token_tiles) return;
        token_tile = 0;
        strip += STRIPS;
    }
    // From here on, in this segment and the run.
    __device__ __forceinline__ int stages(const Weights& w) const {
        return min(left, of_segment(w));
    }
    // Of the next stage in its segment.
    __device__ __forceinline__ int first_half() const { return stage % SEGMENT_STAGES * 2; }
    // From here on, to the end of the row.
    __device__ __forceinline__ int halves(const Weights& w) const { return w.halves - 2 * stage; }
    // Of the record, and its end.
    __device__ __forceinline__ int2 place(const Weights& w) const {
        if (left <= 0) return make_int2(0, 0);
        return make_int2(__ldg(entry(w)), __ldg(entry(w) + 1));
    }
};
