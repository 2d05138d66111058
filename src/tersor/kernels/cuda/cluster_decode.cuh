// A decoding warp of cluster_linear: a strip of the tile, from memory to the operand tiles of all blocks that share it.
//
// There are one or two such warps for each quarter of a multiprocessor, so what counts is how long one takes for a stage:
//
//   - both halves are decoded at once, and nothing is reckoned for every stage that stays the same for a segment;
//   - no lane works alone while others wait;
//   - what comes from memory comes straight to registers, the next stage while this one is stored, the next record while this
//     one is used: what goes by way of shared memory goes through it twice, and wgmma needs nearly all that it can do.
//
// TURNS warps decode a strip in turns, each every TURNS-th stage.
#pragma once
#include "cluster_rings.cuh"
#include "tile_parts.cuh"

// The records of a warp's segments: one in registers, and where the next one is.
struct RecordFeed {
    Walk at;    // to the segment after the next
    int2 next;  // begin and end of its record, in units of ALIGN bytes
    const u8* record;
    RecordWords words;
    RowNotes notes;

    __device__ __forceinline__ RecordFeed(const Weights& w, const Walk& from) : at(from) { look(w); }
    // The next one, once this one has been taken.
    __device__ __forceinline__ void ask(const Weights& w, int lane) {
        record = w.records + (long long)next.x * ALIGN;
        words.read<Far>(record, (next.y - next.x) * ALIGN, lane);
        notes.read<Far>(record, lane / 4);
        look(w);
    }

private:
    __device__ __forceinline__ void look(const Weights& w) {
        next = make_int2(__ldg(at.entry(w)), __ldg(at.entry(w) + 1));
        at.advance(w, ceil_div(at.of_segment(w), TURNS) * TURNS);
    }
};

constexpr int LINE = 128;  // of a cache, in bytes
static_assert(STAGE_BYTES + LINE <= WARP * LINE);  // wherever in a line it begins

// The line of `bytes` from `begin` on that is this lane's, to L2.
__device__ __forceinline__ void prefetch_line(const u8* begin, int bytes, int lane) {
    const u8* line = begin - (u64)begin % LINE + lane * LINE;
    if (line < begin + bytes) prefetch(line);
}

// Blocks that are dispatched first begin while the launch before ends; the last ones when it is over, and then everybody waits
// for them. What their decoders need first are two trips to memory, one after the other. So the first ones bring it to L2:
// warp `helper` of HELPERS that are idle, with a block of the same rank in mind.
template <int HELPERS>
__device__ __forceinline__ void help_later(const Weights& w, const Run& run, int helper, int rank) {
    if (run.later < 0) return;
    const int lane = thread_anew() % WARP;
    for (int i = helper; i < OWN_STRIPS; i += HELPERS) {
        const Walk at(w, run.later, rank * OWN_STRIPS + i);
        const int first = __ldg(at.entry(w)), end = __ldg(at.entry(w) + 1);
        prefetch_line(at.stored(w), at.whole(w) ? STAGE_BYTES : HALF_BYTES, lane);
        prefetch_line(w.records + (long long)first * ALIGN, (end - first) * ALIGN, lane);
    }
}

// Copies to the other block of what is decoded here: of all of a strip's stage at once or, where they are APART, of its first
// eight rows, and of the other eight when the next stage has been decoded. In one burst they cost tiles of 176 tokens and more
// up to 4 per cent (dev/LOG.md).
struct Copies {
    static constexpr int HALVES = 1 + APART, BYTES = STRIP_BYTES / HALVES;
    u32 here, there;     // the strip's rows of the first slot, in this block and in the other
    u32 full;            // the first slot's barrier, of the other block
    u32 owed = A_SLOTS;  // the slot whose second half has not been sent; or none

    __device__ __forceinline__ Copies(u32 strips, int rank, const Barriers& b)
        : here(strips), there(CLUSTER > 1 ? address_of_rank(strips, rank ^ 1) : 0), full(b.a_full + (there - here)) {}
    __device__ __forceinline__ void begin(u32 slot, bool leads) {
        send(slot, 0, leads);
        owed = slot;
    }
    __device__ __forceinline__ void settle(bool leads) const {
        if constexpr (APART) send(owed, 1, leads && owed < A_SLOTS);
    }

private:
    __device__ __forceinline__ void send(u32 slot, int half, bool so) const {
        const u32 at = slot * A_BYTES + half * BYTES;
        if constexpr (CLUSTER > 1) bulk_copy_at_if(so, there + at, here + at, BYTES, full + slot * 8);
    }
};

// Warp `decoder` of DECODERS in block `rank`. It finds the run for itself, so that its first weights are under way when all
// begin.
__device__ __forceinline__ void decode_strip(const Weights& w, u32 operands, const Barriers& b, int decoder, int rank, int period) {
    Run run;
    run.find(w.split, period);
    const int begin = run.begin, end = run.end;
    const int lane = thread_anew() % WARP, turn = decoder / OWN_STRIPS, first = decoder % OWN_STRIPS;
    const int own = rank * OWN_STRIPS + first;  // of the strips of a tile
    const Pieces pieces(lane);
    const u32 strips = operands + own * STRIP_BYTES;
    Walk walk(w, begin, own);
    walk.advance(w, turn);
    FarStage stage;
    const u8* stored = walk.stored(w);
    RecordFeed records(w, walk);
    stage.ask(stored, lane, pieces.turned, walk.whole(w));
    all_begin();
    records.ask(w, lane);
    __syncwarp();
    cluster_wait();  // no block writes to another before its barriers are there
    Copies copies(strips, rank, b);
    Turn<A_SLOTS> out(turn);
    Patches patches;
    int of_segment = 0;  // how many more stages have this record
#pragma unroll 1
    for (int left = end - begin - turn; left > 0; left -= TURNS) {
        const bool begins = of_segment <= 0;
        if (begins) {
            of_segment = walk.of_segment(w);
            patches.take(records.words, records.record, lane);
            stage.begin_segment(records.notes);
        }
        of_segment -= TURNS;
        stage.open();
        u32 a[2][4][4];
        stage.half_bf16(a[0], 0);
        if (walk.whole(w))
            stage.half_bf16(a[1], 1);
        else
            zero(a[1]);
        if constexpr (APART) {
            keep(a[1]);  // decoded until here, not when it is stored
            copies.settle(lane == 0);  // before a slot is waited for, which may be free only when they have come
        }
        const int of_its_segment = walk.stage % SEGMENT_STAGES;
        stored += TURNS * STAGE_BYTES;
        if (walk.advance(w, TURNS)) stored = walk.stored(w);
        // A warp that waits for one of its loads mostly waits for all, as they are counted: so all are made here.
        stage.ask(stored, lane, pieces.turned, walk.whole(w));
        if (begins) records.ask(w, lane);
        const u32 full = b.a_full + out.number * 8, rows = strips + out.number * A_BYTES;
        mbarrier_wait(full + A_SLOTS * 8, out.parity ^ 1);
#pragma unroll
        for (int h = 0; h < 2; h++) pieces.store(rows, a[h], h);
        __syncwarp();  // the fillers are there before the exceptions
        patches.apply(rows, of_its_segment, lane);
        shared_stores_done();
        __syncwarp();
        if (lane == 0 && first == 0) mbarrier_arrive_expect(full, COPIED);
        if (lane == 0 && first != 0) mbarrier_arrive(full);
        copies.begin(out.number, lane == 0);
        out.advance(TURNS);
    }
    copies.settle(lane == 0);
}
