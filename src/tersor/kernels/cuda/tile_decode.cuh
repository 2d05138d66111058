// The decoding warps of tile_linear: 16 rows of a tile each, from compressed stages to finished operand rows.
#pragma once
#include "exceptions.cuh"
#include "mbarrier.cuh"
#include "ring.cuh"
#include "stage.cuh"
#include "tile_work.cuh"

constexpr int SEGMENT_STAGES = SEGMENT_COLS / STAGE_COLS;
constexpr int HALF_BYTES = STAGE_BYTES / 2;     // of the rows of a strip: 16 x 64
constexpr int PARTS = DECODERS / STRIPS;        // warps that take turns at the stages of a strip
constexpr int TURNS = SEGMENT_STAGES / PARTS;   // of a warp, in a segment
constexpr int A_BYTES = TALL * HALF_COLS * 2, STRIP_BYTES = TILE_ROWS * HALF_COLS * 2;
constexpr int SLOT_BYTES = RECORD_HEAD + KEPT * WARP * 4;  // of a record: what a warp's registers hold
static_assert(PARTS * STRIPS == DECODERS && TURNS * PARTS == SEGMENT_STAGES, "decoders");
// A barrier tells only whether a phase is even or odd, so a warp must not be two phases of a slot behind. One that takes
// turns may skip five steps, at the end of a tile whose last segment is short.
static_assert(PARTS == 1 || A_SLOTS >= 5, "warps that take turns need five slots");
static_assert(STAGES - 1 <= TURNS, "a record must arrive within a segment");
static_assert(SLOT_BYTES % 16 == 0, "records are copied 16 bytes at a time");

constexpr int X_BYTES = TOKENS * HALF_COLS * 2;
static_assert(X_SLOTS >= A_SLOTS, "activations are asked for when a slot of weights is free");

struct Barriers {
    u32 a_full, x_full, empty;  // A_SLOTS, X_SLOTS and A_SLOTS of them

    __device__ __forceinline__ Barriers(u32 begin)
        : a_full(begin), x_full(begin + A_SLOTS * 8), empty(x_full + X_SLOTS * 8) {}
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < A_SLOTS; i++) mbarrier_init(a_full + i * 8, STRIPS), mbarrier_init(empty + i * 8, CONSUMERS);
        for (int i = 0; i < X_SLOTS; i++) mbarrier_init(x_full + i * 8, 1);
        mbarrier_init_done();
    }
};

struct Weights {
    const u8* stages;
    const int* places;
    const u8* records;
    int strips, halves, token_tiles;  // strips of the matrix, halves of a row
    Split split;
};

// A warp's way through the segments of its block's run.
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
};

// The compressed stages of a warp's turns, TURNS per segment, the last of them empty if the segment is short.
struct TileFeed {
    Ring<STAGES, STAGE_BYTES> ring;
    Cursor at;
    const u8* from;
    int left, turn = 0, part, lane;

    __device__ __forceinline__ TileFeed(const Weights& w, u8* stages, Cursor at, int part, int lane)
        : ring(stages, lane), at(at), part(part), lane(lane) {
        aim(w);
        for (int i = 0; i < STAGES - 1; i++) fetch(w);
    }
    __device__ __forceinline__ void aim(const Weights& w) {
        left = at.left > 0 ? at.halves(w) * HALF_BYTES - part * STAGE_BYTES : 0;
        const long long half = (long long)at.existing(w) * w.halves + at.segment * SEGMENT_HALVES;
        from = w.stages + half * HALF_BYTES + part * STAGE_BYTES + lane * 16;
    }
    __device__ __forceinline__ void fetch(const Weights& w) {
        ring.fill(from, left, lane);
        from += PARTS * STAGE_BYTES;
        left -= PARTS * STAGE_BYTES;
        if (++turn == TURNS) {
            turn = 0;
            at.advance(w);
            aim(w);
        }
    }
};

// Exceptions of a segment in registers: KEPT per lane, each with its place in a half's operand rows. Any more are read
// from memory for every half: right, but slow.
struct Patches {
    static constexpr u32 OFFSET = STRIP_BYTES - 1, HALF = 0xf800, NOWHERE = 0xf800;
    static_assert(STRIP_BYTES == 2048 && SEGMENT_HALVES < 16, "value 16 bits, half 5, offset 11");
    u32 kept[KEPT];
    const u32* more;
    int count;  // of all

    // An entry with its column and row replaced by the half and the offset within it.
    static __device__ __forceinline__ u32 placed(u32 entry) {
        const u32 column = exception_column(entry), row = exception_row(entry);
        const u32 slot = lane_slot(column / 16 % 8);  // sixteen columns of a stage, in the order of the operand
        const u32 half = column / STAGE_COLS * 2 + slot / 4, piece = slot % 4 * 2 + column / 8 % 2;
        return (entry & 0xffff0000u) | half << 11 | row * 128 | (piece ^ row % 8) << 4 | column % 8 * 2;
    }
    __device__ __forceinline__ void load(const u8* slot, const u8* record, int lane) {
        count = ((const u16*)slot)[TILE_ROWS - 1];
        more = (const u32*)(record + RECORD_HEAD);
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int e = k * WARP + lane;
            kept[k] = e < count ? placed(((const u32*)(slot + RECORD_HEAD))[e]) : NOWHERE;
        }
    }
    // Overwrite the exceptions of a half in its rows at `strip` (a multiple of 2048).
    __device__ __forceinline__ void apply(u32 strip, int half, int lane) const {
#pragma unroll
        for (int k = 0; k < KEPT; k++) put(kept[k], strip, half);
#pragma unroll 1
        for (int e = KEPT * WARP + lane; e < count; e += WARP) put(placed(__ldg(more + e)), strip, half);
    }
    static __device__ __forceinline__ void put(u32 entry, u32 strip, int half) {
        patch(and_or(entry, OFFSET, strip), entry, (entry & HALF) == (u32)half << 11);
    }
};

// A segment's record: asked for a segment ahead, its place two.
struct TileRecord {
    u8* slot;
    Cursor at;
    int2 place;
    const u8* from;  // of the record last asked for

    __device__ __forceinline__ TileRecord(const Weights& w, u8* slot, Cursor at) : slot(slot), at(at) { locate(w); }
    __device__ __forceinline__ void locate(const Weights& w) {
        place = make_int2(0, 0);
        if (at.left <= 0) return;
        const int* entry = w.places + (long long)at.existing(w) * w.split.segments + at.segment;
        place = make_int2(__ldg(entry), __ldg(entry + 1));
        at.advance(w);
    }
    // Begin to copy it; belongs to the group that is committed next.
    __device__ __forceinline__ void ask(const Weights& w, int lane) {
        from = w.records + (long long)place.x * ALIGN;
        const int size = min((place.y - place.x) * ALIGN, SLOT_BYTES);
        const u32 to = shared_address(slot);
#pragma unroll
        for (int i = 0; i < ceil_div(SLOT_BYTES, WARP * 16); i++) {
            const int at = (i * WARP + lane) * 16;
            if (at < size) copy_async_16(to + at, from + at);
        }
        locate(w);
    }
};

// The activations' operand tiles, asked for by one lane per part, AHEAD steps before the weights. When a slot of weights
// is free for step s, step s - A_SLOTS has been read, and so has what stood in the slot of step s + AHEAD.
struct Arranged {
    static constexpr int AHEAD = X_SLOTS - A_SLOTS;
    const u8* x;  // [token tiles][halves][X_BYTES]
    u32 operands, full;
    int half = 0, token_tile = 0;
    u32 at = 0, end = 0;  // steps of the run: the next, how many

    __device__ __forceinline__ void aim(const Weights& w, int begin, int last) {
        const int segments = w.split.segments, tile = begin / segments;
        half = begin % segments * SEGMENT_HALVES;
        token_tile = tile % w.token_tiles;
        end = (last / segments - tile) * w.halves + last % segments * SEGMENT_HALVES - half;
    }
    __device__ __forceinline__ void ask(const Weights& w, u32 step) {
        if (step >= end) return;
        for (half += step - at; half >= w.halves; half -= w.halves)
            if (++token_tile == w.token_tiles) token_tile = 0;
        at = step;
        const u32 number = step % X_SLOTS, barrier = full + number * 8;
        mbarrier_arrive_expect(barrier, X_BYTES);
        bulk_copy(operands + number * X_BYTES, x + ((long long)token_tile * w.halves + half) * X_BYTES, X_BYTES, barrier);
    }
};

// One of DECODERS warps. `operands`: A_SLOTS tiles.
__device__ __forceinline__ void decode_tiles(const Weights& w, u8* stages, u8* slot, Arranged x, u32 operands,
                                             const Barriers& barriers, int decoder, int begin, int end) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int strip = decoder % STRIPS, part = decoder / STRIPS;
    Cursor at(w, begin, end, strip);
    TileRecord record(w, slot, at);
    TileFeed feed(w, stages, at, part, lane);
    record.ask(w, lane);
    copy_async_commit();
    copy_async_wait<0>();
    // Where this lane's two pieces of row g go; those of row g + 8 are 1024 bytes on.
    const u32 rows = strip * STRIP_BYTES, piece = g * 128 + ((2 * t ^ g) << 4), other = piece ^ 16;
    const bool asks = strip == 0 && lane == 0;
    if (asks) {
        x.aim(w, begin, end);
        previous_done();
        let_next_begin();
        if (part == 0)
            for (int i = 0; i < Arranged::AHEAD; i++) x.ask(w, i);
    }
    u32 step = 0;  // halves of the run before this segment
    Stage stage;
    Patches patches;
#pragma unroll 1
    for (; at.left > 0; at.advance(w)) {
        const int halves = at.halves(w);
#pragma unroll 1
        for (int turn = 0; turn < TURNS; turn++) {
            const u8* bytes = stages + feed.ring.read();
            if (turn == 0) {
                stage.begin_segment(slot, g);
                patches.load(slot, record.from, lane);
                __syncwarp();  // every lane has read the record
                record.ask(w, lane);
            }
            feed.fetch(w);
            stage.open(bytes, lane);
            const int first = (turn * PARTS + part) * 2;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (first + h >= halves) break;
                u32 a[4][4];
                stage.half_bf16(a, h);
                const u32 use = step + first + h, number = use % A_SLOTS;
                const u32 to = operands + number * A_BYTES + rows;
                mbarrier_wait(barriers.empty + number * 8, (use / A_SLOTS & 1) ^ 1);
                if (asks) x.ask(w, use + Arranged::AHEAD);
                store_shared_16(to + piece, a[0][0], a[0][2], a[1][0], a[1][2]);
                store_shared_16(to + other, a[2][0], a[2][2], a[3][0], a[3][2]);
                store_shared_16(to + piece + 1024, a[0][1], a[0][3], a[1][1], a[1][3]);
                store_shared_16(to + other + 1024, a[2][1], a[2][3], a[3][1], a[3][3]);
                __syncwarp();  // the fillers are there before the exceptions
                patches.apply(to, first + h, lane);
                shared_stores_done();
                __syncwarp();
                if (lane == 0) mbarrier_arrive(barriers.a_full + number * 8);
            }
        }
        step += halves;
    }
    copy_async_wait<0>();
}
