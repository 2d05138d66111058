// A quad's spans added up by the blocks of a cluster (sm_90), block `rank` of which has the sums of its span `rank`,
// zeros where the row has ended.
//
// In a round all blocks of a cluster multiply the same SPANS strips. The sums of one strip that an adding warp has are a
// *unit*: 16 rows x 8 tokens, 16 bytes a lane. Strip s of warp w's belongs to warp w of block (s + w SPANS) % CLUSTER, so that
// owners take turns within warps and across them. The other blocks' warps w store their spans' units into the owner's
// inbox, and it adds them up in order, just as if one block had had them all.
//
// Nobody waits for a store: st.async counts its bytes on the inbox's barrier `full`, of which the owner knows how many it
// is to get in a round. Inboxes have two halves for rounds in turns. That half k of its inbox is read, a warp tells all its
// senders on their barriers `empty` k, also where nothing in it was its own; so the n-th use of a half, as in mbarrier.cuh,
// waits for phase n of `full` and phase n - 1 of `empty`.
//
// A warp sends round r before it receives r - 1. Count sending round r as step 2 r - 1 and receiving it as step 2 r + 2:
// sending waits for receptions of round r - 2, step 2 r - 2, receiving for step 2 r - 1, both earlier than itself; so
// whoever is furthest behind can go on, and there is no deadlock. (It also waits until its block's other adding warps have
// room for the round, and for the streaming warps, which wait for nothing later than the sending of r - BUFFERS.)
//
// Rejected: sums in global memory, added by a second kernel (dev/BENCHMARKS.md; it is what is done without clusters);
// reading the others' sums where they are, for which a cluster meets twice a round and waits for its loads.
#pragma once
#include "mbarrier.cuh"
#include "work.cuh"

#if CLUSTER > 1
constexpr int ROW_SPANS = ceil_div(X_PITCH, SPAN_COLS);
static_assert(SLICE == 1 && CLUSTER == (ROW_SPANS < QUAD_SPANS ? ROW_SPANS : QUAD_SPANS),
              "a block has one span or, at a row's end, none; a cluster a quad");
static_assert(BAND == 1 && TILE == 8 && TILES == ADDERS, "a unit is one strip's, and 16 bytes a lane");

constexpr int UNITS = ceil_div(SPANS, CLUSTER);    // of a round that a warp owns at most
constexpr int UNIT_BYTES = WARP * sizeof(float4);  // of one span
constexpr int HALF_INBOX = UNITS * CLUSTER * UNIT_BYTES;
constexpr int FULL_AT = 2 * HALF_INBOX, EMPTY_AT = FULL_AT + 2 * 8, INBOX_BYTES = EMPTY_AT + 2 * 8;

struct Exchange {
    u32 inbox;        // [half][unit][span][lane] 16 bytes, then barriers; at the same place in every block
    int rank, shift;  // strip s belongs to block (s + shift) % CLUSTER
    int lane;

    __device__ __forceinline__ Exchange(const u8* inboxes, int warp, int rank, int lane)
        : inbox(shared_address(inboxes) + warp * INBOX_BYTES), rank(rank), shift(warp * SPANS % CLUSTER), lane(lane) {}

    // Before the cluster's blocks meet, which makes it known to all of them.
    __device__ __forceinline__ void init() const {
        if (lane > 0) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            mbarrier_init(inbox + FULL_AT + half * 8, 1);
            mbarrier_init(inbox + EMPTY_AT + half * 8, CLUSTER);
        }
        mbarrier_init_done();
    }
    // Until everybody has read what was sent two rounds ago.
    __device__ __forceinline__ void await_room(int round) const {
        mbarrier_wait_in_cluster(inbox + EMPTY_AT + round % 2 * 8, round / 2 % 2 ^ 1);
    }
    // This span's sums of a round's strip s.
    __device__ __forceinline__ void send(int round, int s, float4 sums) const {
        const u32 there = address_of_rank(inbox, (s + shift) % CLUSTER);
        const int at = round % 2 * HALF_INBOX + (s / CLUSTER * CLUSTER + rank) * UNIT_BYTES;
        store_async_16(there + at + lane * 16, sums, there + FULL_AT + round % 2 * 8);
    }

    // The strip of a round whose unit is this warp's number u; there may be none such.
    __device__ __forceinline__ int strip(int u) const { return (rank + CLUSTER - shift) % CLUSTER + u * CLUSTER; }
    // Until all spans of this warp's units are here, in a round of so many strips.
    __device__ __forceinline__ void await_sums(int round, int strips) const {
        const int units = ceil_div(max(strips - strip(0), 0), CLUSTER);
        const u32 full = inbox + FULL_AT + round % 2 * 8;
        if (lane == 0) mbarrier_arrive_expect(full, units * CLUSTER * UNIT_BYTES);
        mbarrier_wait_in_cluster(full, round / 2 % 2);
    }
    // The sum of all spans of this warp's unit u.
    __device__ __forceinline__ float4 row(int round, int u) const {
        const u32 from = inbox + round % 2 * HALF_INBOX + u * CLUSTER * UNIT_BYTES + lane * 16;
        float4 part[CLUSTER], total = {};
#pragma unroll
        for (int span = 0; span < CLUSTER; span++) part[span] = load_shared_16(from + span * UNIT_BYTES);
#pragma unroll
        for (int span = 0; span < CLUSTER; span++) {
            total.x += part[span].x, total.y += part[span].y;
            total.z += part[span].z, total.w += part[span].w;
        }
        return total;
    }
    // The whole warp has read what came in this round. (Better before it stores: a release waits for stores.)
    __device__ __forceinline__ void give_back(int round) const {
        __syncwarp();
        if (lane < CLUSTER) mbarrier_release_at(address_of_rank(inbox, lane) + EMPTY_AT + round % 2 * 8);
    }
};
#endif
