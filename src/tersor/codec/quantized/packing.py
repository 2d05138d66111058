"""Codes of b bits in rows of bytes.

Eight codes take b bytes, the first code in the lowest bits (a code may lie across two bytes):

    b = 3    byte 0  |c2 c2 c1 c1 c1 c0 c0 c0|    byte 1  |c5 c4 c4 c4 c3 c3 c3 c2|    byte 2  ...

Every row begins at a byte, so rows, and columns in multiples of eight, are cut out without touching
the rest. Both directions work on all codes of one place in their eight at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tersor.format.layout import row_bytes

U8 = npt.NDArray[np.uint8]


def pack(codes: U8, width: int) -> U8:
    """Codes (rows, n) below 2^width as bytes (rows, row_bytes(n, width)); what is left over is zero."""
    packed = np.zeros((len(codes), row_bytes(codes.shape[1], width)), np.uint8)
    for place in range(min(8, codes.shape[1])):
        byte, shift = divmod(place * width, 8)
        bits = codes[:, place::8].astype(np.uint16) << np.uint16(shift)
        packed[:, byte::width][:, : bits.shape[1]] |= bits.astype(np.uint8)
        if shift + width > 8:
            packed[:, byte + 1 :: width][:, : bits.shape[1]] |= (bits >> np.uint16(8)).astype(np.uint8)
    return packed


def unpack(packed: U8, width: int, n: int) -> U8:
    """The first `n` codes of every row, (rows, n)."""
    codes = np.empty((len(packed), n), np.uint8)
    mask = np.uint16((1 << width) - 1)
    for place in range(min(8, n)):
        byte, shift = divmod(place * width, 8)
        bits = packed[:, byte::width].astype(np.uint16)
        if shift + width > 8:
            bits |= packed[:, byte + 1 :: width].astype(np.uint16) << np.uint16(8)
        wanted = codes[:, place::8]
        wanted[:] = (bits >> np.uint16(shift) & mask)[:, : wanted.shape[1]]
    return codes
