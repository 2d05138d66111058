// The exceptions of a strip, span by span: a warp takes four rows, eight lanes a row.
//
// Their records (window/layout.py) come through a ring in shared memory like the weights, several spans ahead:
// a record that is only asked for when it is needed arrives behind everything the streaming warps have asked
// for meanwhile, microseconds later. `places` comes the same way, as far ahead of the records.
#pragma once
#include "ptx.cuh"

constexpr int LANES_PER_ROW = WARP / RECORD_ROWS;
constexpr int RECORDS_PER_SPAN = TILE_ROWS / RECORD_ROWS;
constexpr int SLOT_BYTES = WARP * 16;  // a record of up to 125 exceptions (3 %); longer ones are read where they are
constexpr int RECORDS_AHEAD = 4;       // powers of two
constexpr int PLACES_AHEAD = 2 * RECORDS_AHEAD;
constexpr int RECORD_RING = RECORDS_AHEAD * SLOT_BYTES + PLACES_AHEAD * 8;  // bytes per warp

// One row's part of a record.
struct RowExceptions {
    const u32* entries;
    int begin, end, base;

    __device__ __forceinline__ RowExceptions(const u8* record, int row) {
        const u16* running = (const u16*)record;
        begin = row ? running[row - 1] : 0;
        end = running[row];
        base = record[BASES_AT + row];
        entries = (const u32*)(record + RECORD_HEAD);
    }
    __device__ __forceinline__ u32 column(int e) const { return entries[e] & 0xffff; }
    __device__ __forceinline__ u32 value(int e) const { return entries[e] & 0xffff0000u; }  // as a float's bits
};

// The records of one warp's rows, in the order of its block's spans.
struct RecordStream {
    const int* places;   // of the first of these rows' records
    const u8* records;
    u8* slots;           // [RECORDS_AHEAD][SLOT_BYTES]
    int2* upcoming;      // [PLACES_AHEAD]: a record's begin and end in units of 16 bytes
    int lane, row_spans, spans, strips;
    int strip, span = 0;  // of the next place
    u32 k = 0;            // the next record

    __device__ __forceinline__ void ask_place(u32 number) {
        int* to = (int*)(upcoming + number % PLACES_AHEAD) + lane;
        if (lane < 2) {
            if (strip < strips)
                copy_async_4(shared_address(to), places + (strip * row_spans + span) * RECORDS_PER_SPAN + lane);
            else
                *to = 0;
        }
        if (++span == spans) span = 0, strip += gridDim.x;
    }
    __device__ __forceinline__ void ask_record(u32 number) {
        const int2 place = upcoming[number % PLACES_AHEAD];
        const int size = place.y - place.x;
        if (size <= SLOT_BYTES / ALIGN && lane < size)
            copy_async_16(shared_address(slots + number % RECORDS_AHEAD * SLOT_BYTES) + lane * 16,
                          records + ((long long)place.x + lane) * ALIGN);
    }
    __device__ __forceinline__ void start() {
        for (u32 i = 0; i < PLACES_AHEAD - 1; i++) ask_place(i);
        copy_async_commit();
        copy_async_wait<0>();
        __syncwarp();
        for (u32 i = 0; i < RECORDS_AHEAD - 1; i++) {
            ask_record(i);
            copy_async_commit();
        }
    }
    // The next record; its slot is filled anew after the next call.
    __device__ __forceinline__ const u8* next() {
        copy_async_wait<RECORDS_AHEAD - 2>();
        __syncwarp();  // every lane's copies are in, and every lane is done with the record before
        ask_record(k + RECORDS_AHEAD - 1);
        ask_place(k + PLACES_AHEAD - 1);
        copy_async_commit();
        const int2 place = upcoming[k % PLACES_AHEAD];
        const u8* slot = slots + k % RECORDS_AHEAD * SLOT_BYTES;
        k++;
        return place.y - place.x <= SLOT_BYTES / ALIGN ? slot : records + (long long)place.x * ALIGN;
    }
};

// Lane j of eight gets the sum over the eight lanes of their v[j]: 7 shuffles for 8 sums.
__device__ __forceinline__ float transpose_sum(const float (&v)[8], int j) {
    float u[4], t[2];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float kept = j & 4 ? v[k + 4] : v[k], sent = j & 4 ? v[k] : v[k + 4];
        u[k] = kept + __shfl_xor_sync(ALL_LANES, sent, 4);
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float kept = j & 2 ? u[k + 2] : u[k], sent = j & 2 ? u[k] : u[k + 2];
        t[k] = kept + __shfl_xor_sync(ALL_LANES, sent, 2);
    }
    const float kept = j & 1 ? t[1] : t[0], sent = j & 1 ? t[0] : t[1];
    return kept + __shfl_xor_sync(ALL_LANES, sent, 1);
}

// The same for one sum, in the same order of additions.
__device__ __forceinline__ float lanes_sum(float v) {
    v += __shfl_xor_sync(ALL_LANES, v, 4);
    v += __shfl_xor_sync(ALL_LANES, v, 2);
    return v + __shfl_xor_sync(ALL_LANES, v, 1);
}
