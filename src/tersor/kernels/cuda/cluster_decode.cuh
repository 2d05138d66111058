// A decoding warp of cluster_linear: a strip of the tile, from memory to the operand tiles of all blocks that share it.
//
// It asks for its own stages, by bulk copies, as soon as it has read the ones before them. The first one asks for
// activations too, step by step, when their slot is free: what is to be multiplied next has been there long before,
// as the tensor cores take longer for a step than anybody here.
#pragma once
#include "cluster_rings.cuh"

// What is asked for next; lane 0 alone does that.
struct StageFeed {
    Cursor at;
    int2 place, next_place;
    int half;

    __device__ __forceinline__ StageFeed(const Weights& w, int begin, int end, int strip) : at(w, begin, end, strip), half(0) {
        place = at.place(w);
        Cursor next = at;
        next.advance(w);
        next_place = next.place(w);
    }
    __device__ __forceinline__ void ask(const Weights& w, u8* area, u32 full) {
        if (at.left <= 0) return;
        const int halves = at.halves(w), bytes = half + 1 < halves ? STAGE_BYTES : HALF_BYTES;
        const int record_bytes = half ? 0 : min((place.y - place.x) * ALIGN, RECORD_BYTES);
        const long long before = (long long)at.existing(w) * w.halves + at.segment * SEGMENT_HALVES + half;
        const u32 to = shared_address(area);
        *(int*)(area + NOTE_AT) = place.x;
        mbarrier_arrive_expect(full, bytes + record_bytes);
        bulk_copy(to, w.stages + before * HALF_BYTES, bytes, full);
        if (record_bytes) bulk_copy(to + RECORD_AT, w.records + (long long)place.x * ALIGN, record_bytes, full);
        half += 2;
        if (half < halves) return;
        half = 0;
        at.advance(w);
        place = next_place;
        Cursor next = at;
        next.advance(w);
        next_place = next.place(w);  // asked for a segment ahead
    }
};

// Warp `decoder` of DECODERS in block `rank`. `slots`: address of the first one's weights.
__device__ __forceinline__ void decode_strip(const Weights& w, const u8* x, u8* areas, u32 slots, const Barriers& b, int decoder,
                                             Rank rank, int begin, int end) {
    const int lane = threadIdx.x % WARP, own = rank.token * DECODERS + decoder;  // of the strips of a tile
    const int strip = rank.row * STRIPS + own, row_stages = ceil_div(w.halves, 2);
    const Pieces pieces(lane);
    const u32 stage_full = b.stages + decoder * STAGES * 8;
    areas += decoder * (STAGES * AREA_BYTES);
    Cursor at(w, begin, end, strip);
    StageFeed feed(w, begin, end, strip);
    if (lane == 0)
        for (int i = 0; i < STAGES; i++) feed.ask(w, areas + i * AREA_BYTES, stage_full + i * 8);
    // Lane i has to do with the i-th of the others with these weights.
    const u32 others_slots = lane < CLUSTER_TOKENS - 1 ? address_of_rank(slots, rank.other(lane)) : 0;
    const u32 others_full = lane < CLUSTER_TOKENS - 1 ? address_of_rank(b.full, rank.other(lane)) : 0;
    Turn<STAGES> in;
    Turn<SLOTS> out;
    Stage stage;
    Patches patches;
    if (decoder == 0) {
        previous_done();
        let_next_begin();
    }
#pragma unroll 1
    for (; at.left > 0; at.advance(w)) {
        const int halves = at.halves(w);
        const long long x_tile = (long long)(at.token_tile * CLUSTER_TOKENS + rank.token) * (2 * row_stages) + at.segment * SEGMENT_HALVES;
        const u8* from = x + x_tile * X_TILE_BYTES + rank.row * X_SHARE;
#pragma unroll 1
        for (int first = 0; first < halves; first += 2) {
            u8* area = areas + in.number * AREA_BYTES;
            const u32 filled = stage_full + in.number * 8;
            mbarrier_wait(filled, in.parity);
            in.advance();
            if (first == 0) {
                stage.begin_segment(area + RECORD_AT, lane / 4);
                patches.load(area + RECORD_AT, w.records + (long long)*(const int*)(area + NOTE_AT) * ALIGN, lane);
            }
            stage.open(area, lane);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 a[4][4];
                if (h == 0 || first + 1 < halves)
                    stage.half_bf16(a, h);
                else
                    zero(a);
                if (h == 1) {  // all of the area is in registers
                    __syncwarp();
                    if (lane == 0) feed.ask(w, area, filled);
                }
                const u32 full = b.full + out.number * 8, slot = slots + out.number * SLOT_BYTES, rows = slot + own * STRIP_BYTES;
                mbarrier_wait(full + SLOTS * 8, out.parity ^ 1);
                if (decoder == 0 && lane == 0) {
                    mbarrier_arrive_expect(full, X_TILE_BYTES);
                    const u32 to = slot + TILE_BYTES + rank.row * X_SHARE;
                    if (CLUSTER_ROWS == 1)
                        bulk_copy(to, from, X_SHARE, full);
                    else
                        bulk_copy_to_all(to, from, X_SHARE, full, rank.row_ranks());
                }
                from += X_TILE_BYTES;
                pieces.store(rows, a);
                __syncwarp();  // the fillers are there before the exceptions
                patches.apply(rows, first + h, lane);
                shared_stores_done();
                __syncwarp();
                if (lane == 0) mbarrier_arrive(full);
                if (lane < CLUSTER_TOKENS - 1) {
                    const u32 there = others_full + out.number * 8;
                    mbarrier_arrive_expect_at(there, STRIP_BYTES);
                    bulk_copy_at(others_slots + out.number * SLOT_BYTES + own * STRIP_BYTES, rows, STRIP_BYTES, there);
                }
                out.advance();
            }
        }
    }
}
