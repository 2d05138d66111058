"""`tersor.codec.split` for numba: runs of elements to symbols and raw planes, and back.

One branch per run of at most 128 elements, then a straight loop that LLVM turns into vector
instructions. `kind` stands for the dtype because compiled code knows no strings.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from tersor.codec.unaligned import load_u8, load_u16, load_u32, store_u8, store_u16, store_u32

KINDS = {"BF16": 0, "F16": 1, "F32": 2, "F8_E4M3": 3, "F8_E5M2": 3}
_BF16, _F16, _F32 = KINDS["BF16"], KINDS["F16"], KINDS["F32"]


@njit(nogil=True, cache=True)
def split_symbols(kind, data, element, symbols, n):  # type: ignore[no-untyped-def]
    """Write the symbols of `n` elements of `data`, from `element` on, to `symbols`."""
    if kind == _BF16:
        for i in range(n):
            store_u8(symbols, i, load_u16(data, 2 * (element + i)) >> 7 & 0xFF)
    elif kind == _F16:
        for i in range(n):
            store_u8(symbols, i, load_u16(data, 2 * (element + i)) >> 8)
    elif kind == _F32:
        for i in range(n):
            store_u8(symbols, i, load_u32(data, 4 * (element + i)) >> 23 & 0xFF)
    else:
        for i in range(n):
            store_u8(symbols, i, load_u8(data, element + i))


@njit(nogil=True, cache=True)
def split_raw(kind, data, element, out, at, plane, n):  # type: ignore[no-untyped-def]
    """Write the raw bytes of `n` elements to `out` from `at` on, planes `plane` bytes apart."""
    if kind == _BF16:
        for i in range(n):
            v = load_u16(data, 2 * (element + i))
            store_u8(out, at + i, v >> 8 & 0x80 | v & 0x7F)
    elif kind == _F16:
        for i in range(n):
            store_u8(out, at + i, load_u16(data, 2 * (element + i)) & 0xFF)
    elif kind == _F32:
        for i in range(n):
            v = load_u32(data, 4 * (element + i))
            store_u8(out, at + i, v & 0xFF)
            store_u8(out, at + plane + i, v >> 8 & 0xFF)
            store_u8(out, at + 2 * plane + i, v >> 24 & 0x80 | v >> 16 & 0x7F)


@njit(nogil=True, cache=True)
def join(kind, symbols, first, tiles, at, plane, out, element, n):  # type: ignore[no-untyped-def]
    """Write `n` elements to `out` from `element` on: symbols from `first`, raw bytes from `tiles[at]`."""
    if kind == _BF16:
        for i in range(n):
            s = np.uint32(load_u8(symbols, first + i))
            raw = np.uint32(load_u8(tiles, at + i))
            store_u16(out, 2 * (element + i), (raw & 0x80) << 8 | s << 7 | raw & 0x7F)
    elif kind == _F16:
        for i in range(n):
            s = np.uint32(load_u8(symbols, first + i))
            store_u16(out, 2 * (element + i), s << 8 | np.uint32(load_u8(tiles, at + i)))
    elif kind == _F32:
        for i in range(n):
            s = np.uint32(load_u8(symbols, first + i))
            low = np.uint32(load_u8(tiles, at + i)) | np.uint32(load_u8(tiles, at + plane + i)) << 8
            high = np.uint32(load_u8(tiles, at + 2 * plane + i))
            store_u32(out, 4 * (element + i), (high & 0x80) << 24 | s << 23 | (high & 0x7F) << 16 | low)
    else:
        for i in range(n):
            store_u8(out, element + i, load_u8(symbols, first + i))
