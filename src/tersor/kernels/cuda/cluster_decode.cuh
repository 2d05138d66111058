// A decoding warp of cluster_linear: a strip of the tile, from memory to the operand tiles of all blocks that share it.
//
// There are one or two such warps for each quarter of a multiprocessor, so what counts is how long one takes for a stage: both
// halves are decoded at once, and nothing is reckoned for every stage that stays the same for a segment. Its stages come from
// memory straight to registers, the next one while this one is stored: what goes by way of shared memory goes through it
// twice, and wgmma needs nearly all that shared memory can do.
#pragma once
#include "cluster_rings.cuh"

// Records, by bulk copies, a segment ahead; lane 0 alone asks for them.
struct RecordFeed {
    Cursor at;
    int2 place;  // of the next that is asked for

    __device__ __forceinline__ RecordFeed(const Weights& w, const Cursor& from) : at(from) { place = at.place(w); }
    __device__ __forceinline__ void ask(const Weights& w, u8* area, u32 full) {
        if (at.left <= 0) return;
        const int bytes = min((place.y - place.x) * ALIGN, RECORD_BYTES);
        *(int*)(area + NOTE_AT) = place.x;
        mbarrier_arrive_expect(full, bytes);
        bulk_copy(shared_address(area), w.records + (long long)place.x * ALIGN, bytes, full);
        at.advance(w);
        place = at.place(w);
    }
};

// Warp `decoder` of DECODERS in block `rank`.
__device__ __forceinline__ void decode_strip(const Weights& w, u8* areas, u32 operands, const Barriers& b, int decoder, int rank,
                                             int begin, int end) {
    const int lane = threadIdx.x % WARP, own = rank * DECODERS + decoder;  // of the strips of a tile
    const Pieces pieces(lane);
    const u32 record_full = b.records + decoder * RECORDS * 8, strips = operands + own * STRIP_BYTES;
    areas += decoder * (RECORDS * AREA_BYTES);
    Cursor at(w, begin, end, own);
    RecordFeed feed(w, at);
    if (lane == 0)
        for (int i = 0; i < RECORDS; i++) feed.ask(w, areas + i * AREA_BYTES, record_full + i * 8);
    FarStage stage;
    if (at.left > 0) stage.ask(at.stored(w), lane, pieces.turned, at.halves(w) > 1);
    __syncwarp();
    cluster_wait();  // no block writes to another before its barriers are there
    // Lane i brings what is done to the i-th of the others.
    const int other = lane + (lane >= rank);
    const u32 others_strips = lane < CLUSTER - 1 ? address_of_rank(strips, other) : 0;
    const u32 others_full = lane < CLUSTER - 1 ? address_of_rank(b.a_full, other) : 0;
    Turn<RECORDS> in;
    Turn<A_SLOTS> out;
    Patches patches;
#pragma unroll 1
    while (at.left > 0) {
        u8* area = areas + in.number * AREA_BYTES;
        const u32 filled = record_full + in.number * 8;
        mbarrier_wait(filled, in.parity);
        stage.begin_segment(area, lane / 4);
        patches.load(area, w.records + (long long)*(const int*)(area + NOTE_AT) * ALIGN, lane);
        __syncwarp();  // all of the area is in registers
        if (lane == 0) feed.ask(w, area, filled);
        in.advance();
        const int first = at.stage % SEGMENT_STAGES, count = at.stages(w);
        const u8* next = at.stored(w);
        int halves = at.halves(w);
        at.advance(w);
#pragma unroll 1
        for (int i = 0; i < count; i++, halves -= 2) {
            stage.open();
            u32 a[2][4][4];
            stage.half_bf16(a[0], 0);
            if (halves > 1)
                stage.half_bf16(a[1], 1);
            else
                zero(a[1]);
            next += STAGE_BYTES;
            const bool last = i + 1 == count;
            if (!last || at.left > 0)
                stage.ask(last ? at.stored(w) : next, lane, pieces.turned, (last ? at.halves(w) : halves - 2) > 1);
            const u32 full = b.a_full + out.number * 8, rows = strips + out.number * A_BYTES;
            mbarrier_wait(full + A_SLOTS * 8, out.parity ^ 1);
#pragma unroll
            for (int h = 0; h < 2; h++) pieces.store(rows, a[h], h);
            __syncwarp();  // the fillers are there before the exceptions
            patches.apply(rows, first + i, lane);
            shared_stores_done();
            __syncwarp();
            if (lane == 0 && decoder == 0) mbarrier_arrive_expect(full, COPIED);
            if (lane == 0 && decoder != 0) mbarrier_arrive(full);
            if (lane < CLUSTER - 1)
                bulk_copy_at(others_strips + out.number * A_BYTES, rows, STRIP_BYTES, others_full + out.number * 8);
            out.advance();
        }
    }
}
