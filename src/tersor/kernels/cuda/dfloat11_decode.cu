// The buffers of DFloat11 checkpoints back to bfloat16, bit for bit (dfloat11/layout.py says what they hold).
//
// A *block* of the stream, 4096 bytes and some 12,000 weights, is the work of a group of four warps; three or four
// groups share a multiprocessor and its table and go through the blocks. A lane takes 32 bytes, four of the format's
// windows, and so needs one gap of four. The paper counts, adds up and decodes again; here a lane decodes *once*, to a
// row of its own in shared memory; the sum over the lanes says where the row belongs, and it is copied there, shifted
// by bytes. Then the symbols lie as the weights do and meet their signs and mantissas, asked for before decoding began:
// loads of 8 and stores of 16 bytes per lane, whole lines.
//
// What does not fit the rows (under 1.6 bits per symbol in a lane, under 2 in a block), or lies, is decoded a second
// time, straight to memory: slowly, never outside the output.
#include "join.cuh"
#include "lookup.cuh"
#include "sums.cuh"

constexpr int LANES = BLOCK_BYTES / CHUNK_BYTES;    // of a group
constexpr int CHUNK_WORDS = CHUNK_BYTES / 4, CHUNK_BITS = CHUNK_BYTES * 8;
constexpr int WINDOWS = CHUNK_BYTES / WINDOW_BYTES;  // of a chunk
constexpr int GROUP_WARPS = LANES / WARP;
constexpr int ROW_WORDS = ROW_SYMBOLS / 4 + 3;       // odd, for the banks
constexpr int STREAM_WORDS = CHUNK_WORDS + 1;        // a code may end in the next chunk
constexpr int STREAM_PITCH = STREAM_WORDS + 2;       // a word is read ahead; odd as well
constexpr int RAW_LOADS = FLAT_SYMBOLS / (8 * LANES);
constexpr int POINTER = 240;                         // entries from here on name a row, 256 - entry
constexpr int LUT_ROWS = 257 - POINTER;

// What the warps of a group share.
struct __align__(16) Group {
    u32 rows[LANES][ROW_WORDS];
    u32 flat[FLAT_SYMBOLS / 4 + 4];  // symbol of weight p at byte p - begin + begin % 8
    u32 streams[LANES][STREAM_PITCH];
    int counts[GROUP_WARPS];         // symbols of each warp; TOO_MANY if a row did not hold a lane's
    u32 tails[GROUP_WARPS];          // the last four symbols of each warp
};
struct Luts {
    u8 rows[LUT_ROWS][256], lengths[256];
};
constexpr int TOO_MANY = 1 << 20;
static_assert(sizeof(uint2) * TABLE + sizeof(Luts) + GROUPS * sizeof(Group) == SHARED, "the host counts otherwise");
static_assert(sizeof(Expansion) <= sizeof(Group), "the table is made where groups will work");

// The first code of 32 bits of a stream, first lowest, by the format's own tables: symbol and length.
__device__ uint2 walk(const Luts& luts, u32 bits) {
    const u32 ahead = __brev(bits);
    u32 entry = luts.rows[0][ahead >> 24];
#pragma unroll
    for (int shift = 16; shift >= 0; shift -= 8)
        if (entry >= POINTER) entry = luts.rows[256 - entry][ahead >> shift & 0xff];
    return make_uint2(entry, min(max((u32)luts.lengths[entry], 1u), 32u));
}

__device__ __forceinline__ void build_table(uint2* table, Expansion& of, Luts& luts, const u8* __restrict__ from,
                                            int lut_rows) {
    for (int i = threadIdx.x; i < LUT_ROWS * 256; i += blockDim.x)
        luts.rows[0][i] = i < (lut_rows - 1) * 256 ? from[i] : 0;
    if (threadIdx.x < 256) luts.lengths[threadIdx.x] = from[(lut_rows - 1) * 256 + threadIdx.x];
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < TABLE; i += blockDim.x) {
        const u32 ahead = __brev(i);
        const u32 begun = luts.rows[0][ahead >> 24], row = begun >= POINTER ? 256 - begun : 0;
        const u32 next = luts.rows[row][ahead >> 16 & 0xff], entry = row ? next : begun;
        const u32 length = luts.lengths[entry];
        of.single[i] = entry < POINTER && length <= MAX_CODE_BITS ? entry | length << 8 : 0;
    }
    __syncthreads();
    expand_table(table, of);
    __syncthreads();
}

// Decode all codes that begin in a chunk from bit `gap` on. A sink takes up to four symbols at a time.
template <typename Sink>
__device__ __forceinline__ void decode_chunk(u32 stream, int gap, u32 table, const Luts& luts, Sink& sink) {
    Bits<FromShared> bits(FromShared{stream}, gap);
    int left = CHUNK_BITS - gap;  // until the next chunk
    while (left > 0) {
        bits.refill();
        uint2 entry = bits.look_up(table);
        if (entry.y == 0) {
            const uint2 one = walk(luts, bits.low);
            sink.put(one.x, 8);
            left -= one.y;
            const u64 rest = ((u64)bits.high << 32 | bits.low) >> one.y;
            bits.low = (u32)rest, bits.high = rest >> 32, bits.have -= one.y;
            continue;
        }
        if (left >= 2 * MAX_CODE_BITS) {  // all codes of two entries begin in this chunk
            sink.put(entry.x, symbol_bits_of(entry.y));
            bits.take(entry.y);
            left -= bits_of(entry.y);
            entry = bits.look_up(table);  // 20 bits are left; an empty one changes nothing
            sink.put(entry.x, symbol_bits_of(entry.y));
        } else {
            const u32 reach = min(left, 15);
            const int count = 1 + (begin_of(entry.y, 1) < reach) + (begin_of(entry.y, 2) < reach) +
                              (begin_of(entry.y, 3) < reach);
            sink.put(entry.x, 8 * count);
        }
        bits.take(entry.y);
        left -= bits_of(entry.y);
    }
}

// Single weights to memory, from `next` on and up to `end`.
struct ToMemory {
    u16* out;
    const u8* sign_mantissa;
    u32 next, end;

    __device__ __forceinline__ void put(u32 symbols, u32 symbol_bits) {
        for (; symbol_bits; symbol_bits -= 8, symbols >>= 8, next++)
            if (next < end) out[next] = join_bf16(symbols & 0xff, sign_mantissa[next]);
    }
};

// A lane's part of a block, fetched a block ahead.
struct Share {
    u32 words[STREAM_WORDS];
    int gap;
    u32 begin, end;  // the block's weights
    int left;        // bytes of the stream from this lane's chunk on; none: the chunk lies behind it

    __device__ __forceinline__ void fetch(const u8* encoded, const u8* gaps, const u32* positions, int number,
                                          int blocks, int thread, int bytes, int weights, int position_count) {
        if (number >= blocks) return;
        const u64 at = (u64)number * BLOCK_BYTES + thread * CHUNK_BYTES;
        const u8* from = encoded + at;
        left = bytes - (int)at;
        if (left >= STREAM_WORDS * 4) {
#pragma unroll
            for (int i = 0; i < CHUNK_WORDS; i += 4) {
                const uint4 v = __ldg((const uint4*)(from + 4 * i));
                words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
            }
            words[CHUNK_WORDS] = __ldg((const u32*)(from + CHUNK_BYTES));
        } else {
#pragma unroll
            for (int i = 0; i < STREAM_WORDS; i++) {
                words[i] = 0;
                for (int k = 0; k < 4; k++)
                    if (4 * i + k < left) words[i] |= (u32)from[4 * i + k] << (8 * k);
            }
        }
        const int bit = GAP_BITS * WINDOWS * thread;
        const u8* two = gaps + (long long)number * (GAP_BITS * BLOCK_BYTES / WINDOW_BYTES / 8) + bit / 8;
        gap = (two[0] << 8 | two[1]) >> (16 - GAP_BITS - bit % 8) & ((1 << GAP_BITS) - 1);
        begin = min(__ldg(positions + number), (u32)weights);
        end = number + 1 < position_count ? min(__ldg(positions + number + 1), (u32)weights) : weights;
        end = max(begin, end);
    }
};

extern "C" __global__ void __launch_bounds__(GROUPS * LANES, 1)
dfloat11_decode(const u8* __restrict__ luts_from, const u8* __restrict__ encoded, const u8* __restrict__ sign_mantissa,
                const u32* __restrict__ positions, const u8* __restrict__ gaps, u16* __restrict__ out, int lut_rows,
                int bytes, int weights, int position_count) {
    extern __shared__ __align__(16) u8 shared[];
    uint2* table_entries = (uint2*)shared;
    Luts& luts = *(Luts*)(table_entries + TABLE);
    Group* groups = (Group*)(&luts + 1);
    const int number_of_group = threadIdx.x / LANES, thread = threadIdx.x % LANES, lane = thread % WARP,
              warp = thread / WARP;
    Group& group = groups[number_of_group];
    const int barrier = 1 + number_of_group, blocks = ceil_div(bytes, BLOCK_BYTES), step = gridDim.x * GROUPS;
    const u32 table = shared_address(table_entries), own_row = shared_address(group.rows[thread]);
    const u32 own_stream = shared_address(group.streams[thread]), flat = shared_address(group.flat);
    int number = number_of_group * gridDim.x + blockIdx.x;  // few blocks still fill all multiprocessors
    let_next_begin();
    previous_done();
    Share share;
    share.fetch(encoded, gaps, positions, number, blocks, thread, bytes, weights, position_count);
    build_table(table_entries, *(Expansion*)groups, luts, luts_from, lut_rows);

    for (; number < blocks; number += step) {
        const u32 begin = share.begin, end = share.end;
        const u32 first = min((begin + 7) & ~7u, end), last = max(end & ~7u, first);  // of whole sixteen bytes
        const int gap = share.gap, left = share.left;
#pragma unroll
        for (int i = 0; i < STREAM_WORDS; i++)
            store_shared_4(own_stream + 4 * i, __brev(__byte_perm(share.words[i], 0, 0x0123)));  // first bit lowest
        uint2 raw[RAW_LOADS];
#pragma unroll
        for (int k = 0; k < RAW_LOADS; k++) {
            const u32 at = first + 8 * (thread + k * LANES);
            if (at < last) raw[k] = load_stream((const uint2*)(sign_mantissa + at));
        }
        share.fetch(encoded, gaps, positions, number + step, blocks, thread, bytes, weights, position_count);

        Row<ROW_SYMBOLS / 4 + 1> row{own_row};
        if (left > 0) decode_chunk(own_stream, gap, table, luts, row);
        __syncwarp();
        row.finish();
        const int count = row.done / 8;
        u32 tail = 0;  // the last four symbols: what the next lane's first word lacks
        if (count >= 4 && count <= ROW_SYMBOLS) {
            const u32 word = own_row + ((count - 4) & ~3);
            tail = __funnelshift_r(load_shared_4(word), load_shared_4(word + 4), count % 4 * 8);
        }
        int before = running_sum(count, lane) - count;
        const bool too_many = __any_sync(ALL_LANES, count > ROW_SYMBOLS);
        if (lane == WARP - 1) group.counts[warp] = before + count + (too_many ? TOO_MANY : 0), group.tails[warp] = tail;
        barrier_sync(barrier, LANES);
        int total = 0;
#pragma unroll
        for (int w = 0; w < GROUP_WARPS; w++) {
            if (w == warp) before += total % TOO_MANY;
            total += group.counts[w];
        }
        const bool fits = total <= FLAT_SYMBOLS && end - begin <= FLAT_SYMBOLS;
        u32 previous = __shfl_up_sync(ALL_LANES, tail, 1);
        if (lane == 0 && warp) previous = group.tails[warp - 1];
        if (fits) {
            const u32 to = begin % 8 + before, shift = to % 4 * 8;
            const bool final = thread == LANES - 1 || left <= CHUNK_BYTES;  // nobody behind completes the last word
            const int words = (to + count) / 4 - to / 4 + (final && count);
            const u32 address = flat + (to & ~3u);
#pragma unroll 4
            for (int i = 0; i < words; i++) {
                const u32 own = load_shared_4(own_row + 4 * i);
                store_shared_4(address + 4 * i, __funnelshift_l(previous, own, shift));
                previous = own;
            }
        }
        barrier_sync(barrier, LANES);
        if (fits) {
            const u32 base = flat - (begin & ~7u);
#pragma unroll
            for (int k = 0; k < RAW_LOADS; k++) {
                const u32 at = first + 8 * (thread + k * LANES);
                if (at >= last) break;
                const uint2 symbols = load_shared_8(base + at);
                store_stream_16(out + at, join_eight_bf16(symbols.x, symbols.y, raw[k]));
            }
            if (thread < 16) {  // what shares its sixteen bytes with another block
                const u32 at = thread < 8 ? begin + thread : last + thread - 8;
                if (at < (thread < 8 ? first : end))
                    out[at] = join_bf16(((const u8*)group.flat)[at - (begin & ~7u)], sign_mantissa[at]);
            }
        } else if (left > 0) {
            ToMemory memory{out, sign_mantissa, begin + before, end};
            decode_chunk(own_stream, gap, table, luts, memory);
        }
        __syncwarp();
    }
}
