// A bfloat16 matrix to the `fast` layout (window/layout.py), in three passes over it.
//
// window_rows     per row and segment: the base, and how many exceptions it leaves
// window_places   where each record begins, by one block
// (the host makes room)
// window_blocks   per block: its lanes' words
// window_records  per segment: their record
#include "sums.cuh"

__device__ __forceinline__ int exponent(u32 v) { return v >> 7 & 0xff; }
__device__ __forceinline__ bool outside(u32 v, int base) { return (u32)(exponent(v) - base) >= WINDOW; }

constexpr int ROW_THREADS = 256;  // one per symbol

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
window_rows(const u16* __restrict__ w,  // [rows][cols], one block of threads per row and segment
            u8* __restrict__ base,      // [rows][segments]
            int* __restrict__ counts,   // [rows][segments]
            u32* __restrict__ places,   // [1 + records], zeroed: behind the first, each record's exceptions
            int cols, int segments) {
    __shared__ int histogram[SYMBOLS];
    __shared__ int most, best;
    const int thread = threadIdx.x, first = blockIdx.x % segments * SEGMENT_COLS, stop = min(first + SEGMENT_COLS, cols);
    w += (long long)(blockIdx.x / segments) * cols;
    histogram[thread] = 0;
    if (thread == 0) most = 0, best = SYMBOLS;
    __syncthreads();
    for (int c = first + thread; c < stop; c += ROW_THREADS) atomicAdd(&histogram[exponent(w[c])], 1);
    __syncthreads();
    int covered = -1;
    if (thread >= MIN_BASE && thread <= MAX_BASE) {
        covered = 0;
        for (int i = 0; i < WINDOW; i++) covered += histogram[thread + i];
        atomicMax(&most, covered);
    }
    __syncthreads();
    if (covered == most) atomicMin(&best, thread);  // among equals the smallest
    __syncthreads();
    if (thread == 0) {
        base[blockIdx.x] = best;
        const int exceptions = stop - first - most;
        counts[blockIdx.x] = exceptions;
        atomicAdd(places + 1 + blockIdx.x / segments / TILE_ROWS * segments + blockIdx.x % segments, (u32)exceptions);
    }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
window_places(u32* places, int records) {
    add_up<ROW_THREADS / WARP>(places, records, [](u32 exceptions) {
        return (RECORD_HEAD + (u32)sizeof(u32) * exceptions + ALIGN - 1) / ALIGN;
    });
}

constexpr int BLOCK_THREADS = 256;
constexpr u32 PIECE = (1u << PIECE_BITS) - 1;

// Sixteen weights of one row, from column `c` on, 11 bits each (sign, code, mantissa): fillers, which are 0, where there
// is none or an exception.
struct Row {
    u32 bits[16];

    __device__ __forceinline__ void load(const u16* w, const u8* bases, int row, int c, int rows, int cols, int segments) {
        const int base = row < rows ? bases[(long long)row * segments + c / SEGMENT_COLS] : MIN_BASE;
        const u16* own = w + (long long)row * cols;
#pragma unroll
        for (int k = 0; k < 16; k++) {
            const u32 v = row < rows && c + k < cols ? own[c + k] : (u32)base << 7;
            bits[k] = outside(v, base) ? 0 : v >> 5 & 0x400 | (exponent(v) - base) << 7 | v & 0x7f;
        }
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
window_blocks(const u16* __restrict__ w, const u8* __restrict__ base, u8* __restrict__ out,
              int rows, int cols, int segments, int row_blocks, int blocks) {
    const int number = blockIdx.x * (BLOCK_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (number >= blocks) return;
    const int g = lane / 4, t = lane % 4;
    const int row = number / row_blocks * TILE_ROWS + g, col = number % row_blocks * BLOCK_COLS + t * 16;
    Row halves[2];
    halves[0].load(w, base, row, col, rows, cols, segments);
    halves[1].load(w, base, row + 8, col, rows, cols, segments);
    u32 words[WORDS] = {};
#pragma unroll
    for (int j = 0; j < 16; j++) {  // pair j = 4 i + r: row r % 2, columns 4 i + r / 2 * 2 + {0, 1}
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const u32 bits = halves[j % 2].bits[j / 4 * 4 + j % 4 / 2 * 2 + p];
            const int half = 16 * p, k = j - WORDS;
            if (j < WORDS) {
                words[j] |= ((bits & 0x400) << 5 | bits & 0x3ff) << half;
            } else {
                words[2 * k] |= (bits >> PIECE_BITS & PIECE) << (PIECE_AT + half);
                words[2 * k + 1] |= (bits & PIECE) << (PIECE_AT + half);
                words[WORDS - 1] |= bits >> 10 << (14 - k + half);
            }
        }
    }
    out += (long long)number * BLOCK_BYTES;
    *(uint4*)(out + lane * 16) = make_uint4(words[0], words[1], words[2], words[3]);
    *(uint4*)(out + QUADS_AT + lane * 16) = make_uint4(words[4], words[5], words[6], words[7]);
    *(uint2*)(out + PAIR_AT + lane * 8) = make_uint2(words[8], words[9]);
    *(u32*)(out + LAST_AT + lane * 4) = words[10];
}

extern "C" __global__ void __launch_bounds__(TILE_ROWS * WARP)
window_records(const u16* __restrict__ w, const u8* __restrict__ base,
               const int* __restrict__ counts,  // [rows][segments]
               const int* __restrict__ places,  // [records + 1]
               u8* __restrict__ records,        // zeroed; one block of threads per record, one warp per row
               int rows, int cols, int segments) {
    const int lane = threadIdx.x % WARP, r = threadIdx.x / WARP;
    const int segment = blockIdx.x % segments, first_row = blockIdx.x / segments * TILE_ROWS, row = first_row + r;
    u8* record = records + (long long)places[blockIdx.x] * ALIGN;
    const int other = first_row + lane;
    int running = lane <= r && other < rows ? counts[(long long)other * segments + segment] : 0;
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) running += __shfl_xor_sync(ALL_LANES, running, step);
    const int b = row < rows ? base[(long long)row * segments + segment] : MIN_BASE;
    if (lane == 0) {
        ((u16*)record)[r] = running;
        record[BASES_AT + r] = b;
    }
    if (row >= rows) return;
    u32* entries = (u32*)(record + RECORD_HEAD) + running - counts[(long long)row * segments + segment];
    for (int first = 0; first < SEGMENT_COLS; first += WARP) {
        const int column = first + lane, c = segment * SEGMENT_COLS + column;
        const u32 v = c < cols ? w[(long long)row * cols + c] : (u32)b << 7;
        const bool is = outside(v, b);
        const u32 all = __ballot_sync(ALL_LANES, is);
        if (is) entries[__popc(all & ((1u << lane) - 1))] = v << 16 | r << ROW_SHIFT | column;
        entries += __popc(all);
    }
}
