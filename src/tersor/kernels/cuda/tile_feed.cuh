// The way of tile_linear's feeders through a run, and the warp that asks for compressed weights, by bulk copies.
//
// Bulk copies cost their thread a few instructions whatever their size, and the fence by which stores are shown to the
// tensor cores does not wait for them, as it does for cp.async of the same thread.
#pragma once
#include "tile_rings.cuh"

// The way through the segments of a block's run.
struct Cursor {
    int left, strip, token_tile, segment;  // left: units

    __device__ __forceinline__ Cursor(const Weights& w, int begin, int end, int strip) : left(end - begin) {
        const int tile = begin / w.split.segments;
        segment = begin % w.split.segments;
        token_tile = tile % w.token_tiles;
        this->strip = tile / w.token_tiles * STRIPS + strip;
    }
    __device__ __forceinline__ void advance(const Weights& w) {
        left--;
        if (++segment < w.split.segments) return;
        segment = 0;
        if (++token_tile < w.token_tiles) return;
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

// A lane per strip. The record comes with each of the first PARTS stages of its segment.
__device__ __forceinline__ void feed_weights(const Weights& w, u8* areas, const Barriers& b, int begin, int end) {
    const int lane = threadIdx.x % WARP;
    if (lane >= STRIPS) return;
    Cursor at(w, begin, end, lane);
    int2 place = at.place(w);
    Turn<STAGES> turn;
    while (at.left > 0) {
        const int halves = at.halves(w);
        const long long begin_half = (long long)at.existing(w) * w.halves + at.segment * SEGMENT_HALVES;
        const u8* stages = w.stages + begin_half * HALF_BYTES;
        const u8* record = w.records + (long long)place.x * ALIGN;
        const int record_bytes = min((place.y - place.x) * ALIGN, RECORD_BYTES), note = place.x;
        at.advance(w);
        place = at.place(w);  // asked for a segment ahead
#pragma unroll 1
        for (int half = 0; half < halves; half += 2, stages += STAGE_BYTES, turn.advance()) {
            u8* area = areas + (turn.number * STRIPS + lane) * AREA_BYTES;
            const u32 to = shared_address(area), full = b.stage_full + turn.number * 8;
            const bool whole = half + 1 < halves, first = half / 2 < PARTS;
            const int bytes = whole ? STAGE_BYTES : HALF_BYTES;
            mbarrier_wait(b.stage_empty + turn.number * 8, turn.parity ^ 1);
            *(uint2*)(area + NOTE_AT) = make_uint2(half | (whole ? WHOLE : 0), note);
            mbarrier_arrive_expect(full, bytes + (first ? record_bytes : 0));
            bulk_copy(to, stages, bytes, full);
            if (first) bulk_copy(to + RECORD_AT, record, record_bytes, full);
        }
    }
}
