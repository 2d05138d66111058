"""Huffman streams for numba: the two loops in which compression spends its time.

**Encoding** takes four symbols at a time: their codes (at most 48 bits) are merged as a tree,
so that the only chain from one step to the next is the count of pending bits (at most 7, since
whole bytes are written out each time by one 8-byte store). 4 x 12 + 7 = 55 bits fit in 64.

**Decoding** looks up 12 bits at a time in a table that yields every whole code among them, up to
four symbols, their number and their length:

    next 12 bits (first lowest)  ->  symbols (4 bytes)   count << 4 | bits
    ...

At 2.6 bits per symbol a look-up gives about 3.6 symbols. One 8-byte load feeds four look-ups
(48 of its at least 57 bits). A look-up waits for the one before it, about 8 cycles, so four
streams are decoded side by side to fill the gap. Symbols are stored four at a time whether all
count or not; the next store overwrites the surplus, and `SLACK` bytes of scratch take the last.

Two tables of 16 and 4 KiB stay in a 32 KiB L1 cache; one table of 8-byte entries would not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.codec.compiled import compiled
from tersor.codec.huffman import canonical_codes
from tersor.codec.unaligned import load_u64, store_u32, store_u64
from tersor.format.constants import MAX_CODE_BITS, STREAM

SLACK = 32  # scratch bytes behind each stream's symbols: four look-ups of four, and a last store
ROW = STREAM + SLACK
GROUP = 4  # streams decoded side by side
_MASK = (1 << MAX_CODE_BITS) - 1


def encode_table(book: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Table (256,) from a symbol to length << 16 | code."""
    return (book.astype(np.uint32) << 16 | canonical_codes(book)).astype(np.uint32)


def multi_table(book: NDArray[np.uint8]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Tables (4096,) from the next 12 bits to up to four symbols, and to count << 4 | bits."""
    codes = canonical_codes(book)
    single = np.zeros(_MASK + 1, np.int64)
    for symbol in np.flatnonzero(book):
        single[int(codes[symbol]) :: 1 << int(book[symbol])] = symbol
    lengths = book.astype(np.int64)
    index = np.arange(_MASK + 1)
    symbols = np.zeros(_MASK + 1, np.uint32)
    count = np.zeros(_MASK + 1, np.int64)
    bits = np.zeros(_MASK + 1, np.int64)
    whole = np.ones(_MASK + 1, bool)
    for i in range(4):
        symbol = single[index >> bits]
        whole &= bits + lengths[symbol] <= MAX_CODE_BITS
        symbols |= np.where(whole, symbol << 8 * i, 0).astype(np.uint32)
        bits += np.where(whole, lengths[symbol], 0)
        count += whole
    return symbols, (count << 4 | bits).astype(np.uint8)


@compiled
def encode_stream(symbols, n, table, out, at):  # type: ignore[no-untyped-def]
    """Code `n` symbols into `out` from byte `at` on; returns the bytes used. Writes up to 8 beyond."""
    acc = np.uint64(0)
    pending = np.uint64(0)
    begin = at
    i = 0
    while i + 4 <= n:
        a, b = np.uint64(table[symbols[i]]), np.uint64(table[symbols[i + 1]])
        c, d = np.uint64(table[symbols[i + 2]]), np.uint64(table[symbols[i + 3]])
        la, lc = a >> np.uint64(16), c >> np.uint64(16)
        ab = a & np.uint64(0xFFFF) | (b & np.uint64(0xFFFF)) << la
        cd = c & np.uint64(0xFFFF) | (d & np.uint64(0xFFFF)) << lc
        lab = la + (b >> np.uint64(16))
        acc |= (ab | cd << lab) << pending
        pending += lab + lc + (d >> np.uint64(16))
        store_u64(out, at, acc)
        full = pending >> np.uint64(3)
        at += np.int64(full)
        acc >>= full << np.uint64(3)
        pending &= np.uint64(7)
        i += 4
    while i < n:
        a = np.uint64(table[symbols[i]])
        acc |= (a & np.uint64(0xFFFF)) << pending
        pending += a >> np.uint64(16)
        i += 1
    store_u64(out, at, acc)
    return at + np.int64((pending + np.uint64(7)) >> np.uint64(3)) - begin


@compiled
def _look_up(word, symbols, meta, out, at):  # type: ignore[no-untyped-def]
    """One look-up: store four symbols, return the rest of the word, the next position and the bits used."""
    index = np.int64(word & np.uint64(_MASK))
    m = np.uint64(meta[index])
    used = m & np.uint64(15)
    store_u32(out, at, symbols[index])
    return word >> used, at + np.int64(m >> np.uint64(4)), used


@compiled
def decode_four(buffer, b0, b1, b2, b3, last, n, symbols, meta, out):  # type: ignore[no-untyped-def]
    """Decode four streams of `n` symbols, beginning at bytes b0..b3, to rows of `out` (4 * ROW,).

    `last` is the last byte from which eight can be read; a damaged stream runs into it, not past it.
    """
    limit = np.uint64(last) << np.uint64(3)
    p0, p1 = np.uint64(b0) << np.uint64(3), np.uint64(b1) << np.uint64(3)
    p2, p3 = np.uint64(b2) << np.uint64(3), np.uint64(b3) << np.uint64(3)
    o0, o1, o2, o3 = 0, ROW, 2 * ROW, 3 * ROW
    e0, e1, e2, e3 = n, ROW + n, 2 * ROW + n, 3 * ROW + n
    while o0 < e0 or o1 < e1 or o2 < e2 or o3 < e3:
        w0 = load_u64(buffer, p0 >> np.uint64(3)) >> (p0 & np.uint64(7))
        w1 = load_u64(buffer, p1 >> np.uint64(3)) >> (p1 & np.uint64(7))
        w2 = load_u64(buffer, p2 >> np.uint64(3)) >> (p2 & np.uint64(7))
        w3 = load_u64(buffer, p3 >> np.uint64(3)) >> (p3 & np.uint64(7))
        for _ in range(4):
            w0, o0, u0 = _look_up(w0, symbols, meta, out, o0)
            w1, o1, u1 = _look_up(w1, symbols, meta, out, o1)
            w2, o2, u2 = _look_up(w2, symbols, meta, out, o2)
            w3, o3, u3 = _look_up(w3, symbols, meta, out, o3)
            p0 += u0
            p1 += u1
            p2 += u2
            p3 += u3
        o0, o1, o2, o3 = min(o0, e0), min(o1, e1), min(o2, e2), min(o3, e3)
        p0, p1, p2, p3 = min(p0, limit), min(p1, limit), min(p2, limit), min(p3, limit)
