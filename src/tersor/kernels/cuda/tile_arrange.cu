// Activations in the form of wgmma operands: [token tiles][halves][TOKENS][64] bfloat16, swizzled, zero where there is
// no token or no column. One thread per 16-byte piece.
//
// Columns stand in the order in which the layout's lanes own them (`lane_column`), so that decoding can store what a
// lane has without regrouping it.
#include "ptx.cuh"
#include "stage.cuh"

constexpr int THREADS = 256;
constexpr int PIECES = 8;  // of a row of 64

extern "C" __global__ void __launch_bounds__(THREADS)
tile_arrange(const u16* __restrict__ x,  // [tokens] rows of `pitch` elements
             uint4* __restrict__ out,
             int tokens, int cols, int pitch, int halves, int total) {  // halves: a multiple of two
    let_next_begin();  // the product may ask for weights meanwhile
    const int i = blockIdx.x * THREADS + threadIdx.x;
    previous_done();
    if (i >= total) return;
    const int piece = i % PIECES, n = i / PIECES % TOKENS, tile_half = i / (PIECES * TOKENS);
    const int half = tile_half % halves, token = tile_half / halves * TOKENS + n;
    const int first = half / 2 * STAGE_COLS + lane_column(half % 2, piece / 2) + piece % 2 * 8;
    const u16* from = x + (long long)token * pitch + first;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (token < tokens) {
        if (first + 8 <= cols && (u64)from % 16 == 0) {
            v = *(const uint4*)from;
        } else {
            u32 pairs[4];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const u32 element = first + k < cols ? from[k] : 0;
                pairs[k / 2] = k % 2 ? pairs[k / 2] | element << 16 : element;
            }
            v = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
    out[i - piece + (piece ^ n % 8)] = v;
}
