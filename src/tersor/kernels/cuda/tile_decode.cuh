// The decoding warps of tile_linear: 16 rows of a tile each, from compressed stages to finished operand rows.
//
// A decoder does nothing but decode: where stages and records stand in memory is the business of tile_feed.cuh, which
// says in a stage's `note` what to know of it.
#pragma once
#include "tile_patches.cuh"
#include "tile_rings.cuh"

// One of DECODERS warps; those of a strip take turns. `stages`: of the run.
__device__ __forceinline__ void decode_tiles(const Weights& w, const u8* areas, u32 operands, const Barriers& barriers,
                                             int decoder, int stages) {
    const int lane = threadIdx.x % WARP, strip = decoder % STRIPS, part = decoder / STRIPS;
    const Pieces pieces(lane);
    areas += strip * AREA_BYTES;
    operands += strip * STRIP_BYTES;
    Turn<STAGES> in(part);
    Turn<A_SLOTS> out(part);
    Stage stage;
    Patches patches;
#pragma unroll 1
    for (int left = stages - part; left > 0; left -= PARTS) {
        const u8* area = areas + in.number * (STRIPS * AREA_BYTES);
        const u32 full = barriers.stage_full + in.number * 8, free = full + STAGES * 8;
        mbarrier_wait(full, in.parity);
        in.advance(PARTS);
        const uint2 note = *(const uint2*)(area + NOTE_AT);
        const int first = note.x & 0xf;
        if (note.x & FIRST) {
            stage.begin_segment(area + RECORD_AT, lane / 4);
            patches.load(area + RECORD_AT, w.records + (long long)note.y * ALIGN, lane);
        }
        stage.open(area, lane, pieces.turned);
        const u32 filled = barriers.a_full + out.number * 8, rows = operands + out.number * A_BYTES;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 a[4][4];
            if (h == 0 || note.x & WHOLE)
                stage.half_bf16(a, h);
            else
                zero(a);
            if (h == 1) {  // all of the area is in registers
                __syncwarp();
                if (lane == 0) mbarrier_arrive(free);
            }
            if (h == 0) mbarrier_wait(filled + A_SLOTS * 8, out.parity ^ 1);
            pieces.store(rows, a, h);
        }
        __syncwarp();  // the fillers are there before the exceptions
        patches.apply(rows, first / 2, lane);
        shared_stores_done();
        __syncwarp();
        if (lane == 0) mbarrier_arrive(filled);
        out.advance(PARTS);
    }
}
