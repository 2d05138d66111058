// What the warps of cluster_linear hand on, in shared memory, and to whom: one ring.
//
//   slots   SLOTS steps of 64 columns, an operand tile of weights and one of activations each, with a barrier `full`
//           and two that are `empty`
//   areas   of each decoder STAGES compressed stages with the segment's record; who reads them asks for the next
//
// A cluster is CLUSTER blocks with the same rows and neighbouring tiles of tokens: they share weights. Each decodes
// STRIPS / CLUSTER of the strips and copies them to the others. So weights may be written when the consumers of all blocks
// have read the slot, which `a_empty` counts, and activations when those of this one have: `x_empty`. (With one barrier for
// both, activations, which are longest under way, waited for blocks that have others.) `full` counts the strips decoded
// here, and the bytes of all that is copied: who asks for activations says how many.
#pragma once
#include "mbarrier.cuh"
#include "tile_patches.cuh"

constexpr int NOTE_AT = RECORD_AT + RECORD_BYTES, AREA_BYTES = NOTE_AT + 16;  // a note: the record's place
constexpr int SLOT_BYTES = TILE_BYTES + X_TILE_BYTES;
constexpr int COPIED = X_TILE_BYTES + (STRIPS - DECODERS) * STRIP_BYTES;  // of a slot
static_assert(DECODERS * CLUSTER == STRIPS, "a decoder per strip");
static_assert(SLOT_BYTES % STRIP_BYTES == 0, "patches go by addresses");

struct Barriers {
    u32 full, a_empty, x_empty, stages, landed;  // stages: [DECODERS][STAGES]; landed: [CONSUMERS]

    __device__ __forceinline__ Barriers(u32 begin)
        : full(begin), a_empty(full + SLOTS * 8), x_empty(a_empty + SLOTS * 8), stages(x_empty + SLOTS * 8),
          landed(stages + DECODERS * STAGES * 8) {}
    // Where lane `lane` of CLUSTER tells one block that its weights have been read.
    __device__ __forceinline__ u32 a_empty_of(int lane) const { return lane < CLUSTER ? address_of_rank(a_empty, lane) : 0; }
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < SLOTS; i++) mbarrier_init(full + i * 8, DECODERS + 1);
        for (int i = 0; i < SLOTS; i++) mbarrier_init(a_empty + i * 8, CONSUMERS * CLUSTER);
        for (int i = 0; i < SLOTS; i++) mbarrier_init(x_empty + i * 8, CONSUMERS);
        for (int i = 0; i < DECODERS * STAGES + CONSUMERS; i++) mbarrier_init(stages + i * 8, 1);
        mbarrier_init_done();
    }
};
