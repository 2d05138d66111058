// A decoding warp of cluster_linear: a strip of the tile, from memory to the operand tiles of all blocks that share it.
//
// It asks for its own stages, by bulk copies, as soon as it has read the ones before them, and fills two slots at a
// time: what it waits for (loads, barriers, the fence) takes longer than what it does, and is waited for half as often.
// The first one asks for activations too, whenever it comes by and finds a slot free.
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

// Activations, which one lane of a block asks for: a part of its token tile, for all that share it.
struct ActivationFeed {
    Cursor at;
    const u8 *x, *from;
    int steps;  // left of the segment
    Turn<SLOTS> turn;

    __device__ __forceinline__ ActivationFeed(const Weights& w, const u8* x, Rank rank, int begin, int end)
        : at(w, begin, end, 0), x(x + rank.row * X_SHARE) {
        locate(w, rank);
    }
    __device__ __forceinline__ void locate(const Weights& w, Rank rank) {
        const int row_steps = ceil_div(w.halves, 2) * 2;
        const long long first = (long long)(at.token_tile * CLUSTER_TOKENS + rank.token) * row_steps + at.segment * SEGMENT_HALVES;
        from = x + first * X_TILE_BYTES;
        steps = ceil_div(at.halves(w), 2) * 2;
    }
    __device__ __forceinline__ void ask(const Weights& w, u32 slots, const Barriers& b, Rank rank) {
        while (at.left > 0) {
            const u32 full = b.full + turn.number * 8, to = slots + turn.number * SLOT_BYTES + TILE_BYTES + rank.row * X_SHARE;
            if (!mbarrier_has_ended(full + SLOTS * 8, turn.parity ^ 1)) return;
            mbarrier_arrive_expect(full, X_TILE_BYTES);
            if (CLUSTER_ROWS == 1)
                bulk_copy(to, from, X_SHARE, full);
            else
                bulk_copy_to_all(to, from, X_SHARE, full, rank.row_ranks());
            turn.advance();
            from += X_TILE_BYTES;
            if (--steps > 0) continue;
            at.advance(w);
            locate(w, rank);
        }
    }
};

// Warp `decoder` of DECODERS in block `rank`. `slots`: address of the first one's weights.
__device__ __forceinline__ void decode_strip(const Weights& w, const u8* x, u8* areas, u32 slots, const Barriers& b, int decoder,
                                             Rank rank, int begin, int end) {
    const int lane = threadIdx.x % WARP, own = rank.token * DECODERS + decoder;  // of the strips of a tile
    const int strip = rank.row * STRIPS + own;
    const Pieces pieces(lane);
    const u32 stage_full = b.stages + decoder * STAGES * 8;
    areas += decoder * (STAGES * AREA_BYTES);
    Cursor at(w, begin, end, strip);
    StageFeed feed(w, begin, end, strip);
    if (lane == 0)
        for (int i = 0; i < STAGES; i++) feed.ask(w, areas + i * AREA_BYTES, stage_full + i * 8);
    u32 others_rows[SHARERS], others_full[SHARERS];  // of those with the same weights
#pragma unroll
    for (int i = 0; i < CLUSTER_TOKENS - 1; i++) {
        others_rows[i] = address_of_rank(slots + own * STRIP_BYTES, rank.other(i));
        others_full[i] = address_of_rank(b.full, rank.other(i));
    }
    ActivationFeed activations(w, x, rank, begin, end);
    const bool brings_x = decoder == 0 && lane == 0;
    Turn<STAGES> in;
    Turn<SLOTS> out;
    Stage stage;
    Patches patches;
    if (decoder == 0) {
        previous_done();
        let_next_begin();
    }
    if (brings_x) activations.ask(w, slots, b, rank);
#pragma unroll 1
    for (; at.left > 0; at.advance(w)) {
        const int halves = at.halves(w);
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
            u32 even[4][4], odd[4][4];
            stage.half_bf16(even, 0);
            if (first + 1 < halves)
                stage.half_bf16(odd, 1);
            else
                zero(odd);
            __syncwarp();  // all of the area is in registers
            if (lane == 0) feed.ask(w, area, filled);
            const u32 full = b.full + out.number * 8, rows = slots + out.number * SLOT_BYTES + own * STRIP_BYTES;
            mbarrier_wait(full + SLOTS * 8, out.parity ^ 1);
            mbarrier_wait(full + (SLOTS + 1) * 8, out.parity ^ 1);
            if (brings_x) activations.ask(w, slots, b, rank);
            pieces.store(rows, even);
            pieces.store(rows + SLOT_BYTES, odd);
            __syncwarp();  // the fillers are there before the exceptions
            patches.apply(rows, first, lane);
            patches.apply(rows + SLOT_BYTES, first + 1, lane);
            shared_stores_done();
            __syncwarp();
            if (lane < 2) {
                mbarrier_arrive(full + lane * 8);
#pragma unroll
                for (int i = 0; i < CLUSTER_TOKENS - 1; i++) {
                    const u32 there = others_full[i] + (out.number + lane) * 8;
                    mbarrier_arrive_expect_at(there, STRIP_BYTES);
                    bulk_copy_at(others_rows[i] + (out.number + lane) * SLOT_BYTES, rows + lane * SLOT_BYTES, STRIP_BYTES, there);
                }
            }
            out.advance(2);
        }
    }
}
