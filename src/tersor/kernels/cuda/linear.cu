// y = x W^T (+ bias) for 1 to TOKENS tokens, W in one of the layouts (stage.cuh) with the skeleton of fused/layout.py.
//
// A block of threads stays on its multiprocessor and works through spans (16 rows x 1024 columns) of its
// strips, SPANS at a time, called a round:
//
//   CONSUMERS warps   two per span of the round, one per segment (512 columns): stream the segment through a
//                     ring, decode, multiply on the tensor cores, add the segment's exceptions on the ordinary
//                     cores, leave 16 x TOKENS sums in `sums`, go on. WARPGROUPS (16 tokens, sm_90 only): four warps have the
//                     same segment of four strips and multiply together (warpgroup_strips.cuh)
//   ADDERS warps      one per 8 tokens, or one for all: add the segments up in their fixed order and write
//
// The two meet once a round through `sums`, which is double (BUFFERS = 2) where there is room: consumers run up to
// a round ahead, and the stream from memory never stops at the end of a strip.
//
// The text is compiled for the number of input features and for 1, 2, 4, 8, 16 or 32 tokens (TOKENS), so that
// addresses of activations are one register and a constant.
//
// SLICE = 0: activations come through L1 (few tokens; x has TOKENS rows). The grid is (blocks, 1), y is written.
// SLICE = n: blockIdx.y takes n spans of the columns, whose activations stay in shared memory, eight tokens
//            side by side (activations.cuh); the spans of a row are added in the same order by combine.cu or, where
//            the CLUSTER blocks of a quad are a cluster, by these themselves, and only quads by combine.cu (finish.cuh).
#include "exception_sums.cuh"
#include "finish.cuh"
#if WARPGROUPS
#include "warpgroup_strips.cuh"
#else
#include "stage_activations.cuh"
#endif

// For want of registers, with so many blocks: read slots as memory.
constexpr bool ONE_WAY = (BLOCKS_PER_SM > 3 && __CUDA_ARCH__ != 900) || (BLOCKS_PER_SM > 2 && __CUDA_ARCH__ >= 1000);
// Stages asked for before a slice's activations, all of which everybody waits for: they come no sooner than what is asked
// for before them. With none, memory would stand still until they are known.
constexpr int EAGER = SLICE ? 1 : STAGES - 1;

// A segment's sums to `own`.
__device__ __forceinline__ void leave(const Problem& p, const float (&sum)[CHAINS][TILES][4], float* own, const u8* slot,
                                      int lane) {
    constexpr int TWO = TILE > 1 ? 2 : 1;  // tokens 2 t and 2 t + 1
    const int g = lane / 4, t = lane % 4;
    const float low = RowScale(slot, g, p.unit).sums(), high = RowScale(slot, g + 8, p.unit).sums();
#pragma unroll
    for (int n = 0; n < TILES; n++)
        if (TWO * t < TILE) {
            Floats<TWO> of_low, of_high;
#pragma unroll
            for (int k = 0; k < TWO; k++) {
                of_low.value[k] = (sum[0][n][k] + sum[1][n][k]) * low;
                of_high.value[k] = (sum[0][n][2 + k] + sum[1][n][2 + k]) * high;
            }
            of_low.store(own + sum_at(g, n * 8 + 2 * t));
            of_high.store(own + sum_at(g + 8, n * 8 + 2 * t));
        }
}

__device__ __forceinline__ void consume(const Problem& p, u8* stages, u8* slots, float* sums) {
    // With warpgroups known to be the same in all lanes, or ways that are never taken cost five registers.
    const int warp = WARPGROUPS ? uniform(threadIdx.x / WARP) : threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int segment = segment_of(warp);
#if CLUSTER > 1
    cluster_arrive_relaxed();
#endif
    stages += warp * STAGES * BAND * STAGE_BYTES;
    Position place{(int)blockIdx.x, 0};
    for (int i = span_of(warp); i > 0; i--) place.advance(1, p.spans);
    Stream stream(stages, Source(p, place, segment, lane), lane);
    stream.fill<0, EAGER>();
    Record record[BAND];
#pragma unroll
    for (int u = 0; u < BAND; u++) {
        record[u].slot = slots + (warp * BAND + u) * SLOT_BYTES;
        record[u].locate(p, place, u, segment);
    }
    previous_done();
    let_next_begin();
    if (SLICE) {
        p.x.stage(p.halves * HALF_COLS, p.tokens, threadIdx.x);
#if WARPGROUPS
        shared_stores_done();  // wgmma reads by another way
#endif
        barrier_sync(READY, THREADS);
    }
    stream.fill<EAGER>();
    StageActivations<TILES> x(p.x, lane);
#pragma unroll 1
    for (int round = 0; round < p.rounds; round++) {
        float sum[BAND][CHAINS][TILES][4] = {};
        const int first = (place.span * SPAN_HALVES + segment * SEGMENT_HALVES) * HALF_COLS;
        const int halves = p.from(place, segment), strips = p.strips_of(place);
        const int multiplied = WARPGROUPS ? p.halves_from(place, segment) : halves;  // who multiplies together agrees
        const auto ask_records = [&] {
            p.move(place);
#pragma unroll
            for (int u = 0; u < BAND; u++) {
                record[u].ask(p, lane);
                record[u].locate(p, place, u, segment);
            }
        };
        if (!SLICE) {
            __syncwarp();  // every lane is done with the records before
            ask_records();
        }
        x.aim(first, halves, lane);
#pragma unroll
        for (int stage = 0; stage < SEGMENT_STAGES; stage++) {
            x.prefetch(stage);
            stream.wait();
            Stage weight[BAND];
#pragma unroll
            for (int u = 0; u < BAND; u++) weight[u].open(stages + (stage % STAGES * BAND + u) * STAGE_BYTES, lane);
            if (SLICE && stage == 0) ask_records();  // while the first words come from shared memory
            if (stage + STAGES - 1 == SEGMENT_STAGES) stream.next = Source(p, place, segment, lane);
            stream.fetch(stage + STAGES - 1);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                // Where WHOLE, and of strips that warpgroups lack, weights that are not there are multiplied, and not kept.
                if (!WHOLE && 2 * stage + h >= multiplied) break;
#if WARPGROUPS
                u32 a[STEPS][4];
                // A stage's halves overlap; with branches that would spill.
                if (stage + h > 0 && (h == 0 || !WHOLE)) wgmma_wait<0>();
                weight[0].half(a, h);
                if (stage + h == 0)
                    x.multiply<true>(sum[0], a);
                else
                    x.multiply<false>(sum[0], a);
#else
                u32 a[BAND][STEPS][4];
#pragma unroll
                for (int u = 0; u < BAND; u++) weight[u].half(a[u], h);
#pragma unroll
                for (int i = 0; i < STEPS; i += CHAINS)
#pragma unroll
                    for (int n = 0; n < TILES; n++) {
                        u32 b[2 * CHAINS];
                        x.load(b, n, stage, h, i / CHAINS);
#pragma unroll
                        for (int u = 0; u < BAND; u++)
#pragma unroll
                            for (int k = 0; k < CHAINS; k++) mma_bf16(sum[u][k][n], a[u][i + k], b[2 * k], b[2 * k + 1]);
                    }
#endif
            }
        }
#if WARPGROUPS
        x.finish(sum[0]);
#endif
        stream.now = stream.next;
        if (round >= BUFFERS) barrier_sync(EMPTY + round % BUFFERS, THREADS);
        float* own = sums + (round % BUFFERS * CONSUMERS + place_of(warp)) * BAND * SUM;
        if (halves > 0) {
#pragma unroll
            for (int u = 0; u < BAND; u++) leave(p, sum[u], own + u * SUM, record[u].slot, lane);
            const Activations own_x = p.x.from((p.halves - halves) * HALF_COLS);  // `first`, without a register for it
            __syncwarp();
#pragma unroll 1
            for (int u = 0; u < strips; u++, own += SUM) {
                const Record here{record[0].slot + u * SLOT_BYTES};
#pragma unroll 1
                for (int n = 0; n < TILES && n * 8 < p.tokens; n += TOGETHER)
                    if (!ONE_WAY && here.whole())
                        add_exceptions<false>(own, here.slot, here.slot, p.unit, lane, own_x, n);
                    else
                        add_exceptions<true>(own, here.slot, here.whole() ? here.slot : here.in_memory(p), p.unit, lane,
                                             own_x, n);
            }
        } else {
#pragma unroll 1
            for (int i = lane; i < BAND * SUM; i += WARP) own[i] = 0;
        }
        barrier_arrive(FULL + round % BUFFERS, THREADS);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
#if CLUSTER > 1
__cluster_dims__(1, CLUSTER, 1)
#endif
linear(const u8* __restrict__ weights,  // stages
       const int* __restrict__ places, const u8* __restrict__ records,
       const u16* __restrict__ x,       // [tokens][X_PITCH] bfloat16, zero from the last column on
       const u16* __restrict__ bias,    // [rows] bfloat16 or null
       u16* __restrict__ y,             // [tokens][rows] bfloat16
       float* __restrict__ partial,     // [spans, or quads, of a row][tokens][rows], for combine.cu, where gridDim.y > CLUSTER
       int rows, int tokens, int unit) {
    extern __shared__ __align__(128) u8 shared[];
    constexpr int row_halves = X_PITCH / HALF_COLS;
    u8* slots = shared + CONSUMERS * STAGES * BAND * STAGE_BYTES;
    float* sums = (float*)(slots + CONSUMERS * BAND * SLOT_BYTES);  // [BUFFERS][CONSUMERS][BAND] as sum_at says
    const int first_span = SLICE * blockIdx.y, first_half = first_span * SPAN_HALVES;
    Problem p;
    p.weights = weights + (long long)first_half * HALF_BYTES;
    p.places = places + first_span * SPAN_SEGMENTS;
    p.records = records;
    p.tokens = tokens;
    p.strips = ceil_div(rows, STRIP);
    p.bands = ceil_div(p.strips, BAND);
    p.row_halves = row_halves;
    p.row_segments = ceil_div(row_halves, SEGMENT_HALVES);
    p.unit = unit;
    p.halves = SLICE ? min(row_halves - first_half, SLICE * SPAN_HALVES) : row_halves;
    p.spans = SLICE == 1 ? 1 : ceil_div(p.halves, SPAN_HALVES);  // a cluster's last block may have nothing in its own
    p.bands_on = SPANS / p.spans * gridDim.x;
    p.spans_on = SPANS % p.spans;
    p.rounds = ceil_div(ceil_div(p.bands - (int)blockIdx.x, gridDim.x) * p.spans, SPANS);
    u8* slice = (u8*)(sums + BUFFERS * CONSUMERS * BAND * SUM);
    p.x = Activations{x + first_span * SPAN_COLS, slice};
    const Output out{bias, y, partial + (long long)(first_span / CLUSTER) * tokens * rows, rows, slice + TILES * PLANE_BYTES};
    if (threadIdx.x < CONSUMERS * WARP)
        consume(p, shared, slots, sums);
    else
        finish(p, out, sums);
}
