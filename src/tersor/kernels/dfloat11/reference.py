"""DFloat11's buffers decoded by NumPy: the truth that the kernel is compared with.

As in the paper, every window of 8 bytes is decoded by itself, here all of them in step: one code of each per
turn, at most 64 turns. How many codes began in the windows before says where a window's weights belong; the
output positions say the same for whole blocks and are believed where they disagree, as the official decoder does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.kernels.dfloat11.layout import BLOCK_WINDOWS, GAP_BITS, MAX_BITS, POINTER, WINDOW_BYTES

_WINDOW_BITS = 8 * WINDOW_BYTES
_TABLES = 257 - POINTER


def decode(
    luts: NDArray[np.uint8],
    encoded_exponent: NDArray[np.uint8],
    sign_mantissa: NDArray[np.uint8],
    output_positions: NDArray[np.uint32],
    gaps: NDArray[np.uint8],
) -> NDArray[np.uint16]:
    """The bit patterns [n] of the bfloat16 weights. Any content is decoded to something."""
    n = sign_mantissa.size
    exponents = np.zeros(n, np.uint8)
    windows = -(-encoded_exponent.size // WINDOW_BYTES)
    stream = np.zeros(windows * WINDOW_BYTES + 16, np.uint8)
    stream[: encoded_exponent.size] = encoded_exponent
    at = _gaps(gaps, windows) + np.arange(windows) * _WINDOW_BITS
    symbols, counts = _decode_windows(luts, stream, at)
    place = _places(counts, output_positions, n)
    for turn in range(symbols.shape[1]):
        there = (turn < counts) & (place + turn < n)
        exponents[place[there] + turn] = symbols[there, turn]
    raw = sign_mantissa.astype(np.int64)
    return ((raw & 0x80) << 8 | exponents.astype(np.int64) << 7 | raw & 0x7F).astype(np.uint16)


def _gaps(packed: NDArray[np.uint8], windows: int) -> NDArray[np.int64]:
    """The gaps of the first windows, in bits."""
    bits = np.unpackbits(packed, count=windows * GAP_BITS).reshape(windows, GAP_BITS)
    return bits.astype(np.int64) @ (1 << np.arange(GAP_BITS)[::-1])


def _decode_windows(
    luts: NDArray[np.uint8], stream: NDArray[np.uint8], at: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Symbols [windows, 64] of the codes that begin in each window from bit `at` on, and how many there are."""
    tables = np.zeros((_TABLES, 256), np.uint8)
    used = min(len(luts) - 1, _TABLES)
    tables[:used] = luts[:used]
    lengths = np.clip(luts[-1].astype(np.int64), 1, MAX_BITS)
    end = (np.arange(at.size) + 1) * _WINDOW_BITS
    symbols = np.zeros((at.size, _WINDOW_BITS), np.uint8)
    counts = np.zeros(at.size, np.int64)
    active = np.arange(at.size)
    while active.size:
        codes = _peek(stream, at[active])
        entry = tables[0, codes >> 24]
        for shift in (16, 8, 0):
            table = np.where(entry >= POINTER, 256 - entry.astype(np.int64), 0)
            entry = np.where(entry >= POINTER, tables[table, codes >> shift & 0xFF], entry)
        symbols[active, counts[active]] = entry
        counts[active] += 1
        at[active] += lengths[entry]
        active = active[at[active] < end[active]]
    return symbols, counts


def _peek(stream: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The 32 bits from bit `at` on."""
    five = np.zeros(at.size, np.int64)
    for i in range(5):
        five = five << 8 | stream[at // 8 + i]
    codes: NDArray[np.int64] = five >> (8 - at % 8) & 0xFFFFFFFF
    return codes


def _places(counts: NDArray[np.int64], output_positions: NDArray[np.uint32], n: int) -> NDArray[np.int64]:
    """Number of the first weight of each window."""
    before = np.cumsum(counts) - counts
    block = np.arange(counts.size) // BLOCK_WINDOWS
    begins: NDArray[np.int64] = np.append(output_positions.astype(np.int64), n)[block]
    places: NDArray[np.int64] = begins + before - before[block * BLOCK_WINDOWS]
    return places
