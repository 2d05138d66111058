// How the sums of segments, which the streaming warps of a block leave in `sums`, become rows: the adding warps' part.
//
// All layouts and numbers of tokens have one order: the two segments of a span, the QUAD_SPANS spans of a quad, the quads from
// 0 on, the bias.
//
//   all spans in this block      added up here, in registers
//   blocks of a cluster          exchange.cuh: a quad, of which each adds up some strips; if there are more, to `partial`
//   blocks that do not meet      spans' sums to `partial`
//
// What is in `partial` is added up by combine.cu.
#pragma once
#include "exchange.cuh"

constexpr int THREADS = (CONSUMERS + ADDERS) * WARP;
constexpr int SUM = STRIP * TOKENS;                 // floats of one segment
[[maybe_unused]] constexpr int READY = 1;           // named barriers: the streaming warps have put the slice of x in place,
constexpr int FULL = 2, EMPTY = 4;                  // + 0 or 1: which of the buffers
constexpr int OWN = TILE > 1 ? TILE / 2 : 1, OWN_TILES = TILES / ADDERS;  // tokens of a lane, each in so many tiles

struct Output {
    const u16* bias;
    u16* y;
    float* partial;  // of the first span, or the quad, of this slice
    int rows;
    u8* inboxes;     // of a cluster's block

    __device__ __forceinline__ float bias_of(int row) const { return row < rows && bias ? from_bf16(__ldg(bias + row)) : 0.f; }
};

// One lane's sums of a span, `own` being the first segment's, the other's BAND segments further.
__device__ __forceinline__ Floats<OWN> span_sum(const float* own) {
    Floats<OWN> part = {};
#pragma unroll
    for (int i = 0; i < SPAN_SEGMENTS; i++) {
        const auto one = Floats<OWN>::at(own + i * BAND * SUM);
#pragma unroll
        for (int k = 0; k < OWN; k++) part.value[k] += one.value[k];
    }
    return part;
}

#if CLUSTER > 1
// Lane = (tokens, row). Nothing that comes from other blocks is still under way when a warp has come to the end of this: it
// has waited for all sums of its own, and for all `empty`s that anybody sends. So it may leave before the others do.
__device__ __forceinline__ void finish(const Problem& p, const Output& out, const float* sums) {
    const int warp = threadIdx.x / WARP - CONSUMERS, lane = threadIdx.x % WARP, row = lane % STRIP;
    const int token = warp * 8 + lane / STRIP * OWN;
    const Exchange exchange(out.inboxes, warp, blockIdx.y % CLUSTER, lane);
    const int strips = ceil_div(p.strips - (int)blockIdx.x, gridDim.x);  // of this cluster
    const float* const own = sums + sum_at(row, token);
    const int keep = p.tokens - token;  // of this lane's tokens, or more
    exchange.init();
    __syncwarp();
    cluster_arrive_relaxed();
    previous_done();
    barrier_sync(READY, THREADS);
    for (int round = 0; round <= p.rounds; round++) {
        if (round < p.rounds) {
            const int here = strips - round * SPANS;
            Floats<OWN> part[SPANS];
            if (round == 0) {
                __syncwarp();
                cluster_wait();  // the others' barriers are there
            }
            exchange.await_room(round);
            barrier_sync(FULL + round % BUFFERS, THREADS);
#pragma unroll
            for (int s = 0; s < SPANS; s++)
                part[s] = span_sum(own + (round % BUFFERS * CONSUMERS + s * SPAN_SEGMENTS) * SUM);
            if (round + BUFFERS < p.rounds) barrier_arrive(EMPTY + round % BUFFERS, THREADS);
#pragma unroll
            for (int s = 0; s < SPANS; s++)
                if (s < here) exchange.send(round, s, *(const float4*)part[s].value);
        }
        if (round == 0) continue;
        const int before = round - 1, here = min(strips - before * SPANS, SPANS);
        int rows[UNITS];
        float bias[UNITS];
        float4 total[UNITS] = {};
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            const int s = exchange.strip(u);
            rows[u] = s < here ? ((int)blockIdx.x + (before * SPANS + s) * (int)gridDim.x) * STRIP + row : out.rows;
            bias[u] = out.bias_of(rows[u]);
        }
        exchange.await_sums(before, here);
#pragma unroll
        for (int u = 0; u < UNITS; u++)
            if (exchange.strip(u) < here) total[u] = exchange.row(before, u);
        if (before + 2 < p.rounds) exchange.give_back(before);
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            const float of_row[OWN] = {total[u].x, total[u].y, total[u].z, total[u].w};
            const long long at = (long long)token * out.rows + rows[u];
#pragma unroll
            for (int k = 0; k < OWN; k++)
                if (rows[u] < out.rows && k < keep) {
                    if (ROW_SPANS == CLUSTER)
                        out.y[at + (long long)k * out.rows] = to_bf16(of_row[k] + bias[u]);
                    else
                        out.partial[at + (long long)k * out.rows] = of_row[k];
                }
        }
    }
}
#else
// Lane = (tokens, row): add up the segments of each span, the spans of each quad, the quads of each strip, and write.
__device__ __forceinline__ void finish(const Problem& p, const Output& out, const float* sums) {
    const int warp = threadIdx.x / WARP - CONSUMERS, lane = threadIdx.x % WARP, row = lane % STRIP;
    const int first = warp * OWN_TILES * 8 + lane / STRIP * OWN;
    Position place{(int)blockIdx.x, 0};
    float of_quad[BAND][OWN_TILES][OWN] = {}, total[BAND][OWN_TILES][OWN] = {};
    previous_done();
    if (SLICE) barrier_sync(READY, THREADS);
    for (int round = 0; round < p.rounds; round++) {
        barrier_sync(FULL + round % BUFFERS, THREADS);
        const float* in = sums + round % BUFFERS * CONSUMERS * BAND * SUM;
#pragma unroll 1
        for (int s = 0; s < SPANS && place.band < p.bands; s++, in += SPAN_SEGMENTS * BAND * SUM) {
            const bool last = place.span + 1 == p.spans, whole = last || place.span % QUAD_SPANS == QUAD_SPANS - 1;
#pragma unroll
            for (int u = 0; u < BAND; u++) {
                const int r = (p.strip(place) + u) * STRIP + row;
                const float bias = last ? out.bias_of(r) : 0.f;
#pragma unroll
                for (int n = 0; n < OWN_TILES; n++) {
                    const int token = first + 8 * n;
                    const Floats<OWN> part = span_sum(in + u * SUM + sum_at(row, min(token, TOKENS - OWN)));
                    const int keep = r < out.rows ? p.tokens - token : 0;  // of this lane's tokens, or more
                    if (gridDim.y > 1) {
                        float* to = out.partial + ((long long)place.span * p.tokens + token) * out.rows + r;
#pragma unroll
                        for (int k = 0; k < OWN; k++, to += out.rows)
                            if (k < keep) *to = part.value[k];
                        continue;
                    }
                    u16* to = out.y + (long long)token * out.rows + r;
#pragma unroll
                    for (int k = 0; k < OWN; k++, to += out.rows) {
                        float &quad = of_quad[u][n][k], &of_row = total[u][n][k];
                        quad += part.value[k];
                        if (whole) of_row += quad, quad = 0;
                        if (last && k < keep) *to = to_bf16(of_row + bias);
                        if (last) of_row = 0;
                    }
                }
            }
            place.advance(1, p.spans);
        }
        if (round + BUFFERS < p.rounds) barrier_arrive(EMPTY + round % BUFFERS, THREADS);
    }
}
#endif
