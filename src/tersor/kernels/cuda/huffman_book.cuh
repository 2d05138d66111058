// The huffman code of 256 counts, made by one block of threads: what codec/huffman.py makes, bit for bit.
//
// Package-merge (Larmore and Hirschberg, 1990). A list begins as the leaves, in order of (count, symbol); each level
// pairs its neighbours and merges the pairs with the leaves, leaves first among equals. A leaf's place in a merged list
// is its rank plus the pairs that weigh less, a pair's its rank plus the leaves that weigh no more: two binary searches
// by all threads at once. Of the last list 2 n - 2 items are taken; the pairs among them are the first of their level,
// so they stand for twice as many items of the list before, and so on down. A symbol's code has as many bits as there
// are levels in which its leaf was taken.
#pragma once
#include "types.cuh"

constexpr int BOOK_THREADS = 2 * SYMBOLS;  // the lower half has the leaves, the upper half the pairs

struct BookScratch {
    u64 leaves[SYMBOLS], pairs[SYMBOLS], list[2 * SYMBOLS];  // weights in order
    u16 places[MAX_CODE_BITS][SYMBOLS];                      // of each leaf in the list of each level
    int symbols[SYMBOLS];                                    // of the leaves
    int lengths[SYMBOLS];                                    // of the symbols' codes
    int only;                                                // the symbol, where one alone occurs
};

// How many of the `n` ordered weights are less than `than`; with `equal`, those that are no more.
__device__ __forceinline__ int count_less(const u64* weights, int n, u64 than, bool equal) {
    int first = 0;
    while (n) {
        const int half = n / 2;
        const u64 w = weights[first + half];
        const bool less = w < than || (equal && w == than);
        first += less ? half + 1 : 0;
        n = less ? n - half - 1 : half;
    }
    return first;
}

// Put the leaves in order; returns how many there are, two at least, because a code is always complete.
__device__ __forceinline__ int sort_leaves(BookScratch& s, const u64* counts) {
    const int thread = threadIdx.x;
    const u64 weight = thread < SYMBOLS ? __ldcg(counts + thread) : 0;
    if (thread == 0) s.only = SYMBOLS;
    const int used = __syncthreads_count(weight > 0);
    if (weight && used == 1) s.only = thread;
    __syncthreads();
    const bool filler = used < 2 && thread != s.only && thread - (thread > s.only) < 2 - used;
    const bool leaf = weight || filler;
    if (thread < SYMBOLS) {
        s.list[thread] = leaf ? weight : ~0ull;
        s.lengths[thread] = 0;
    }
    __syncthreads();
    if (leaf) {
        int rank = 0;
        for (int t = 0; t < SYMBOLS; t++) rank += s.list[t] < weight || (s.list[t] == weight && t < thread);
        s.leaves[rank] = weight;
        s.symbols[rank] = thread;
    }
    __syncthreads();
    return max(used, 2);
}

// All threads of a block of BOOK_THREADS call it. `codes`: a symbol's code (first bit lowest) in the low, its length
// in the high half.
__device__ __forceinline__ void make_book(BookScratch& s, const u64* counts, u8* book, u32* codes) {
    const int n = sort_leaves(s, counts), thread = threadIdx.x, pair = thread - SYMBOLS;
    if (thread < n) {
        s.list[thread] = s.leaves[thread];
        s.places[0][thread] = thread;
    }
    __syncthreads();
    int pairs = n / 2;
    for (int level = 1; level < MAX_CODE_BITS; level++) {
        if (pair >= 0 && pair < pairs) s.pairs[pair] = s.list[2 * pair] + s.list[2 * pair + 1];
        __syncthreads();
        if (pair >= 0 && pair < pairs) {
            const u64 weight = s.pairs[pair];
            s.list[pair + count_less(s.leaves, n, weight, true)] = weight;
        } else if (thread < n) {
            const u64 weight = s.leaves[thread];
            const int place = thread + count_less(s.pairs, pairs, weight, false);
            s.list[place] = weight;
            s.places[level][thread] = place;
        }
        __syncthreads();
        pairs = (n + pairs) / 2;
    }
    int take = 2 * n - 2, length = 0;
    for (int level = MAX_CODE_BITS - 1; level >= 0; level--) {
        const bool taken = thread < n && s.places[level][thread] < take;
        take = 2 * (take - __syncthreads_count(taken));
        length += taken;
    }
    if (thread < n) s.lengths[s.symbols[thread]] = length;
    __syncthreads();
    if (thread >= SYMBOLS) return;
    length = s.lengths[thread];
    u32 before = 0;  // what the codes before this one, in order of (length, symbol), take of all 2^MAX_CODE_BITS
    for (int t = 0; t < SYMBOLS; t++) {
        const int other = s.lengths[t];
        if (other && (other < length || (other == length && t < thread))) before += 1u << (MAX_CODE_BITS - other);
    }
    book[thread] = length;
    codes[thread] = length ? __brev(before >> (MAX_CODE_BITS - length)) >> (32 - length) | length << 16 : 0;
}
