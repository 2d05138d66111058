// What a segment's exceptions add to its sums, on the ordinary cores.
//
// Two lanes share a row, lane = 2 row + j taking every second exception; a row of more than MANY is shared by the whole
// warp, so that one such row does not hold up the others. Which lane takes what, and so the order of a sum, depends on
// the record alone: neither on how many tokens there are nor on how the numbers come here.
//
// The longest row decides how long that takes: with 2 % of exceptions a lane has 5, one of the 32 has 9.
#pragma once
#include "work.cuh"

constexpr int TOGETHER = TILES % 2 ? 1 : 2;         // tiles of tokens whose exceptions are added at a time
constexpr int MANY = 32;                            // exceptions of a row in a segment that two lanes take at most
using ExceptionSums = float[TOGETHER][TILE];

// Add to `sum` the exceptions e, e + 2, ... before `end` of one row, two at a time so that their loads overlap.
__device__ __forceinline__ void gather_pairs(ExceptionSums& sum, const u32* entries, int e, int end, RowScale scale,
                                             const Activations& x, int tile) {
#pragma unroll 1
    for (; e < end; e += 4) {
        const bool two = e + 2 < end;
        const u32 a = entries[e], b = entries[two ? e + 2 : e];
        const float v = scale.missing(a), w = scale.missing(b);
        TokenValues p[TOGETHER], q[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++)
            p[n] = x.column(tile + n, exception_column(a)), q[n] = x.column(tile + n, exception_column(b));
#pragma unroll
        for (int n = 0; n < TOGETHER; n++)
#pragma unroll
            for (int k = 0; k < TILE; k++) {
                sum[n][k] += v * p[n][k];
                if (two) sum[n][k] += w * q[n][k];
            }
    }
}

// The same one by one, the next entry read meanwhile: eight tokens overlap enough, and half of all rows end with one.
__device__ __forceinline__ void gather(ExceptionSums& sum, const u32* entries, int e, int end, RowScale scale,
                                       const Activations& x, int tile) {
    u32 entry = e < end ? entries[e] : 0;
#pragma unroll 1
    while (e < end) {
        const float v = scale.missing(entry);
        TokenValues p[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) p[n] = x.column(tile + n, exception_column(entry));
        e += 2;
        if (e < end) entry = entries[e];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++)
#pragma unroll
            for (int k = 0; k < TILE; k++) sum[n][k] += v * p[n][k];
    }
}

// The same of a row that the warp shares, of exceptions `begin` to `end`: four neighbours per lane and turn.
template <bool LONG>
__device__ __forceinline__ void gather_shared(ExceptionSums& sum, const u32* entries, int begin, int end, int lane,
                                              RowScale scale, const Activations& x, int tile) {
    constexpr int PART = LONG || LAYOUT == 0 || BLOCKS_PER_SM > 2 ? 1 : TILE == 1 ? 4 : 2;  // under way, as registers allow
    const uint4* from = (const uint4*)entries;
#pragma unroll 1
    for (int e = begin / 4 * 4 + 4 * lane; e < end; e += 4 * WARP) {
        const uint4 four = from[e / 4];
        const u32 entry[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i += PART)
#pragma unroll
            for (int n = 0; n < TOGETHER; n++) {
                TokenValues p[PART];
#pragma unroll
                for (int j = 0; j < PART; j++) p[j] = x.column(tile + n, exception_column(entry[i + j]));
#pragma unroll
                for (int j = 0; j < PART; j++)
                    if (e + i + j >= begin && e + i + j < end)
#pragma unroll
                        for (int k = 0; k < TILE; k++) sum[n][k] += scale.missing(entry[i + j]) * p[j][k];
            }
    }
}

// Add the exceptions of a segment to its sums for the tokens of TOGETHER tiles. The record's head is in its slot, its
// entries are there or, LONG, all in memory; x begins with the segment.
template <bool LONG>
__device__ __forceinline__ void add_exceptions(float* sums, const u8* slot, const u8* record, int unit, int lane,
                                               const Activations& x, int tile) {
    constexpr int KEPT = TILE > 1 ? TILE / 2 : 1;  // tokens of a tile whose sum a lane ends up with
    const u32* entries = (const u32*)(record + RECORD_HEAD);
    const int row = lane / 2, j = lane % 2;
    const RowExceptions own(slot, row);
    const bool many = own.end - own.begin > MANY;
    ExceptionSums sum = {};
    const RowScale scale(slot, row, unit);
    if (TILE < 8 && !LONG)
        gather_pairs(sum, entries, own.begin + j, many ? 0 : own.end, scale, x, tile);
    else
        gather(sum, entries, own.begin + j, many ? 0 : own.end, scale, x, tile);
    for (u32 rest = __ballot_sync(ALL_LANES, many && j == 0); rest; rest &= rest - 1) {
        const int long_row = __ffs(rest) / 2;  // lane 2 row is bit 2 row + 1, as __ffs counts
        const RowExceptions shared(slot, long_row);
        ExceptionSums part = {};
        gather_shared<LONG>(part, entries, shared.begin, shared.end, lane, RowScale(slot, long_row, unit), x, tile);
#pragma unroll
        for (int n = 0; n < TOGETHER; n++)
#pragma unroll
            for (int k = 0; k < TILE; k++) {
#pragma unroll
                for (int apart = WARP / 2; apart; apart /= 2) part[n][k] += __shfl_xor_sync(ALL_LANES, part[n][k], apart);
                if (lane == 2 * long_row) sum[n][k] = part[n][k];
            }
    }
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) {
        float* at = sums + sum_at(row, (tile + n) * 8 + (TILE > 1 ? KEPT * j : 0));
        auto out = Floats<KEPT>::at(at);
#pragma unroll
        for (int k = 0; k < KEPT; k++) {  // lane j keeps tokens KEPT j + k
            const int other = TILE > 1 ? k + KEPT : k;
            const float kept = j ? sum[n][other] : sum[n][k], sent = j ? sum[n][k] : sum[n][other];
            const float both = kept + __shfl_xor_sync(ALL_LANES, sent, 1);
            out.value[k] += both * scale.exceptions();
        }
        if (TILE > 1 || j == 0) out.store(at);
    }
}
