// The tiles of tile_linear that its blocks cut between them: add the parts in the order of the columns, write y.
//
// blockIdx.x + 1 is the block of tile_linear whose run begins inside a tile, if it is the first to do so; blockIdx.y
// and a thread are a quad of the tile's sums.
#include "tile_work.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
tile_combine(const float4* __restrict__ partial, const u16* __restrict__ bias, u16* __restrict__ y, int rows, int tokens,
             int segments, int token_tiles, int units, int chunk, int blocks, int exponent) {
    const Split split{segments, token_tiles, units, chunk};
    const int from = split.begin(blockIdx.x + 1, blocks), tile = from / segments, begin = tile * segments;
    previous_done();
    let_next_begin();
    if (from == begin || split.begin(blockIdx.x, blocks) > begin) return;
    const int quad = blockIdx.y * THREADS + threadIdx.x;
    float4 total = __ldg(partial + (long long)(2 * blockIdx.x + 1) * QUADS + quad);
    for (int block = blockIdx.x + 1; block < blocks && split.begin(block, blocks) < begin + segments; block++) {
        const float4 part = __ldg(partial + (long long)(2 * block) * QUADS + quad);
        total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
    }
    const int thread = quad % (GROUPS * 128), number = quad / (GROUPS * 128);
    const Output out{bias, y, rows, tokens, __int_as_float((127 + exponent) << 23)};
    out.write(tile / token_tiles, tile % token_tiles, Quad(thread, number / (TOKENS / 8), number % (TOKENS / 8)), total);
}
