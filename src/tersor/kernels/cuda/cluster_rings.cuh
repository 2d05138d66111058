// What the warps of cluster_linear hand on, in shared memory, and to whom: one ring.
//
//   slots   SLOTS steps of 64 columns, an operand tile of weights and one of activations each, with a barrier `full`
//           and two that are `empty`
//   areas   of each decoder STAGES compressed stages with the segment's record; who reads them asks for the next
//
// A cluster is CLUSTER_ROWS x CLUSTER_TOKENS blocks, rank = token tile * CLUSTER_ROWS + row tile. Blocks of the same row
// tile share its weights: each decodes STRIPS / CLUSTER_TOKENS of the strips and copies them to the others. Those of
// the same token tile share its activations: each asks for a part, for all. So weights may be written when the consumers
// of all who share them have read the slot, which `a_empty` counts, and activations when theirs have: `x_empty`. (With one
// barrier for both, activations, which are longest under way, waited for blocks that have others.) `full` counts the strips
// decoded here, and the bytes of all that is copied: who asks for activations says how many.
#pragma once
#include "mbarrier.cuh"
#include "tile_patches.cuh"

constexpr int NOTE_AT = RECORD_AT + RECORD_BYTES, AREA_BYTES = NOTE_AT + 16;  // a note: the record's place
constexpr int SLOT_BYTES = TILE_BYTES + X_TILE_BYTES;
constexpr int SHARED_TOKENS = TOKENS / CLUSTER_ROWS;  // of a tile of activations, what one block asks for
constexpr int COPIED = X_TILE_BYTES + (STRIPS - DECODERS) * STRIP_BYTES;  // of a slot
constexpr int SHARERS = CLUSTER_TOKENS + CLUSTER_ROWS;  // of weights and of activations, with oneself
static_assert(DECODERS * CLUSTER_TOKENS == STRIPS, "a decoder per strip");
static_assert(SLOT_BYTES % STRIP_BYTES == 0, "patches go by addresses");

struct Rank {
    int row, token;
    __device__ __forceinline__ Rank(int rank) : row(rank % CLUSTER_ROWS), token(rank / CLUSTER_ROWS) {}
    static __device__ __forceinline__ int of(int row, int token) { return token * CLUSTER_ROWS + row; }
    // The i-th of the others with these weights.
    __device__ __forceinline__ int other(int i) const { return of(row, i + (i >= token)); }
    // Those with these activations, a bit each.
    __device__ __forceinline__ u16 row_ranks() const { return ((1 << CLUSTER_ROWS) - 1) << token * CLUSTER_ROWS; }
};

struct Barriers {
    u32 full, a_empty, x_empty, stages, landed;  // stages: [DECODERS][STAGES]; landed: [CONSUMERS]

    __device__ __forceinline__ Barriers(u32 begin)
        : full(begin), a_empty(full + SLOTS * 8), x_empty(a_empty + SLOTS * 8), stages(x_empty + SLOTS * 8),
          landed(stages + DECODERS * STAGES * 8) {}
    // Lane `lane` of SHARERS tells one block that its weights, or its activations, have been read.
    __device__ __forceinline__ u32 empty_of(Rank rank, int lane) const {
        if (lane < CLUSTER_TOKENS) return address_of_rank(a_empty, Rank::of(rank.row, lane));
        return lane < SHARERS ? address_of_rank(x_empty, Rank::of(lane - CLUSTER_TOKENS, rank.token)) : 0;
    }
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < SLOTS; i++) mbarrier_init(full + i * 8, DECODERS + 1);
        for (int i = 0; i < SLOTS; i++) mbarrier_init(a_empty + i * 8, CONSUMERS * CLUSTER_TOKENS);
        for (int i = 0; i < SLOTS; i++) mbarrier_init(x_empty + i * 8, CONSUMERS * CLUSTER_ROWS);
        for (int i = 0; i < DECODERS * STAGES + CONSUMERS; i++) mbarrier_init(stages + i * 8, 1);
        mbarrier_init_done();
    }
};
