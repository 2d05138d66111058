// A decoding warp of cluster_linear: a strip of the tile, from memory to the operand tiles of all blocks that share it.
//
// It asks for its own stages, by bulk copies, as soon as it has read the ones before them. There is one such warp for each
// quarter of a multiprocessor, so what counts is how long it takes for a stage: both halves are decoded at once, and
// nothing is reckoned for every stage that stays the same for a segment.
#pragma once
#include "cluster_rings.cuh"

// What is asked for next; lane 0 alone does that.
struct StageFeed {
    Cursor at;
    const u8* from;           // the next stage
    int done, count, halves;  // of the segment, as far as it is in the run; to the end of the row
    int2 place, next_place;

    __device__ __forceinline__ StageFeed(const Weights& w, int begin, int end, int strip) : at(w, begin, end, strip) {
        place = at.place(w);
        begin_segment(w);
    }
    __device__ __forceinline__ void begin_segment(const Weights& w) {
        done = 0, count = at.stages(w), halves = at.halves(w), from = at.stored(w);
        Cursor next = at;
        next.advance(w);
        next_place = next.place(w);  // asked for a segment ahead
    }
    __device__ __forceinline__ void ask(const Weights& w, u8* area, u32 full) {
        if (at.left <= 0) return;
        const u32 to = shared_address(area);
        const int bytes = 2 * done + 1 < halves ? STAGE_BYTES : HALF_BYTES;
        if (done == 0) {
            const int record_bytes = min((place.y - place.x) * ALIGN, RECORD_BYTES);
            *(int*)(area + NOTE_AT) = place.x;
            mbarrier_arrive_expect(full, bytes + record_bytes);
            bulk_copy(to + RECORD_AT, w.records + (long long)place.x * ALIGN, record_bytes, full);
        } else {
            mbarrier_arrive_expect(full, bytes);
        }
        bulk_copy(to, from, bytes, full);
        from += STAGE_BYTES;
        if (++done < count) return;
        at.advance(w);
        place = next_place;
        begin_segment(w);
    }
};

// Warp `decoder` of DECODERS in block `rank`. `slots`: address of the first one's weights.
__device__ __forceinline__ void decode_strip(const Weights& w, u8* areas, u32 slots, const Barriers& b, int decoder, int rank,
                                             int begin, int end) {
    const int lane = threadIdx.x % WARP, own = rank * DECODERS + decoder;  // of the strips of a tile
    const Pieces pieces(lane);
    const u32 stage_full = b.stages + decoder * STAGES * 8, strips = slots + own * STRIP_BYTES;
    areas += decoder * (STAGES * AREA_BYTES);
    Cursor at(w, begin, end, own);
    StageFeed feed(w, begin, end, own);
    if (lane == 0)
        for (int i = 0; i < STAGES; i++) feed.ask(w, areas + i * AREA_BYTES, stage_full + i * 8);
    __syncwarp();
    cluster_wait();  // no block writes to another before its barriers are there
    // Lane i brings what is done to the i-th of the others.
    const int other = lane + (lane >= rank);
    const u32 others_strips = lane < CLUSTER - 1 ? address_of_rank(strips, other) : 0;
    const u32 others_full = lane < CLUSTER - 1 ? address_of_rank(b.full, other) : 0;
    Turn<STAGES> in;
    Turn<SLOTS> out;
    Stage stage;
    Patches patches;
#pragma unroll 1
    for (; at.left > 0; at.advance(w)) {
        const int begin = at.first_half(), count = 2 * at.stages(w), halves = at.halves(w);
#pragma unroll 1
        for (int half = 0; half < count; half += 2) {
            u8* area = areas + in.number * AREA_BYTES;
            const u32 filled = stage_full + in.number * 8;
            mbarrier_wait(filled, in.parity);
            in.advance();
            if (half == 0) {
                stage.begin_segment(area + RECORD_AT, lane / 4);
                patches.load(area + RECORD_AT, w.records + (long long)*(const int*)(area + NOTE_AT) * ALIGN, lane);
            }
            stage.open(area, lane);
            u32 a[2][4][4];
            stage.half_bf16(a[0], 0);
            if (half + 1 < halves)
                stage.half_bf16(a[1], 1);
            else
                zero(a[1]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 full = b.full + out.number * 8, rows = strips + out.number * SLOT_BYTES;
                mbarrier_wait(full + (b.a_empty - b.full), out.parity ^ 1);
                pieces.store_tile(rows, a, h);
                __syncwarp();  // the fillers are there before the exceptions
                patches.apply(rows, begin + half + h, lane);
                shared_stores_done();
                __syncwarp();
                if (lane == 0) mbarrier_arrive(full);
                if (lane < CLUSTER - 1)
                    bulk_copy_at(others_strips + out.number * SLOT_BYTES, rows, STRIP_BYTES, others_full + out.number * 8);
                out.advance();
            }
            if (lane == 0) feed.ask(w, area, filled);  // all of the area is in registers
        }
    }
}
