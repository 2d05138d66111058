// The tiles that a product's blocks cut between them: add the parts in the order of the columns, write y.
//
// blockIdx.x + 1 is the cluster whose run begins inside a tile, if it is the first to do so; blockIdx.y and a thread
// are a quad of the tile's sums. Whose parts they are is found out while the product ends.
#include "tile_work.cuh"

constexpr int THREADS = 256;
constexpr int TOGETHER = 4;  // parts under way at a time

extern "C" __global__ void __launch_bounds__(THREADS)
tile_combine(const float4* partial, const u16* __restrict__ bias, u16* __restrict__ y, int rows, int tokens, int segments,
             int token_tiles, int units, int chunk, int clusters, int exponent) {
    let_next_begin();  // a product may ask for its weights meanwhile
    const Split split{segments, token_tiles, units, chunk};
    const int first = blockIdx.x, from = split.begin(first + 1, clusters), tile = from / segments, begin = tile * segments;
    const bool cut_here = from > begin && split.begin(first, clusters) <= begin;
    int end = first + 1;  // of the tile's clusters
    while (cut_here && end < clusters && split.begin(end, clusters) < begin + segments) end++;
    const int quad = blockIdx.y % (QUADS / THREADS) * THREADS + threadIdx.x, rank = blockIdx.y / (QUADS / THREADS);
    constexpr int PART = CLUSTER * QUADS;
    const float4* part = partial + (long long)(2 * first + 1) * PART + rank * QUADS + quad;  // of the first, then of the next
    if (!cut_here && blockIdx.x + blockIdx.y) return;  // the first one waits: who waits for us waits for the product
    previous_done();
    if (!cut_here) return;
    float4 total = __ldcg(part);
    part += PART;
#pragma unroll 1
    for (int left = end - first - 1; left > 0; left -= TOGETHER, part += 2 * TOGETHER * PART) {
        uint4 next[TOGETHER] = {};
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) load_16_if(i < left, next[i], part + 2 * i * PART);
#pragma unroll
        for (const uint4& n : next) {
            total.x += __uint_as_float(n.x), total.y += __uint_as_float(n.y);
            total.z += __uint_as_float(n.z), total.w += __uint_as_float(n.w);
        }
    }
    const int thread = quad % (GROUPS * 128), number = quad / (GROUPS * 128);
    const Output out{bias, y, rows, tokens, power_of_two(exponent)};
    const int row_tile = tile / token_tiles * CLUSTER_ROWS + rank % CLUSTER_ROWS;
    const int token_tile = tile % token_tiles * CLUSTER_TOKENS + rank / CLUSTER_ROWS;
    const Quad at(thread, number / (TOKENS / 8), number % (TOKENS / 8));
    if (out.inside(row_tile, token_tile))
        out.write_whole(row_tile, token_tile, at, total, out.biases(row_tile, at));
    else
        out.write(row_tile, token_tile, at, total);
}
