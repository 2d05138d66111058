"""Canonical, length-limited Huffman codes.

A code is fully given by 256 lengths, the *book*: codes count up in order of (length, symbol),
as in RFC 1951. Lengths are limited to 12 bits so that one look-up in a table of 4096 entries
decodes any code; on the exponents of trained weights the limit costs about 0.003 bit at most,
because only exponents rarer than 2^-12 feel it.

Lengths come from the package-merge algorithm (Larmore and Hirschberg, 1990), which is optimal
under the limit. Clipping an unlimited Huffman code and repairing it (as zlib does) is simpler
to make fast but not optimal, and speed does not matter here: 256 symbols, once per tensor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.format.constants import MAX_CODE_BITS, SYMBOLS
from tersor.format.errors import BadBook


def code_lengths(counts: NDArray[np.int64], limit: int = MAX_CODE_BITS) -> NDArray[np.uint8]:
    """The book (256,) of an optimal prefix code with lengths up to `limit` for these counts (256,).

    The code is always complete: a tensor of one symbol gets a second, unused one, so that every
    bit pattern decodes and the Kraft sum is exactly 1.
    """
    used = [int(s) for s in np.flatnonzero(counts)]
    while len(used) < 2:
        used.append(next(s for s in range(SYMBOLS) if s not in used))
    leaves = sorted((int(counts[s]), (s,)) for s in used)
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(limit):
        paired = [
            (packages[i][0] + packages[i + 1][0], packages[i][1] + packages[i + 1][1])
            for i in range(0, len(packages) - 1, 2)
        ]
        packages = sorted(leaves + paired, key=lambda p: p[0])
    book = np.zeros(SYMBOLS, np.uint8)
    for _, members in packages[: 2 * len(used) - 2]:
        for symbol in members:
            book[symbol] += 1
    return book


def check_book(book: NDArray[np.uint8], where: str = "tensor") -> None:
    """Raise BadBook unless `book` (256,) is a complete prefix code within the limit."""
    used = book[book > 0].astype(np.int64)
    if used.size == 0 or used.max() > MAX_CODE_BITS:
        raise BadBook(
            f"{where}: code lengths must be 0 to {MAX_CODE_BITS}, some of them not 0; the data is damaged"
        )
    kraft = int((1 << (MAX_CODE_BITS - used)).sum())
    if kraft != 1 << MAX_CODE_BITS:
        raise BadBook(
            f"{where}: the Kraft sum of the code lengths is {kraft}/{1 << MAX_CODE_BITS}, it must be 1; "
            f"the data is damaged"
        )


def canonical_codes(book: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Codes (256,) of a checked book, bit-reversed: the first bit of a code is its lowest."""
    codes = np.zeros(SYMBOLS, np.uint16)
    code = 0
    for length in range(1, MAX_CODE_BITS + 1):
        for symbol in np.flatnonzero(book == length):
            codes[symbol] = int(format(code, f"0{length}b")[::-1], 2)
            code += 1
        code <<= 1
    return codes


def decode_table(book: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Table (4096,) from the next 12 bits of a stream (first bit lowest) to the symbol they begin with."""
    table = np.zeros(1 << MAX_CODE_BITS, np.uint8)
    codes = canonical_codes(book)
    for symbol in np.flatnonzero(book):
        table[int(codes[symbol]) :: 1 << int(book[symbol])] = symbol
    return table
