"""Proofs about a compressed tensor, a few strips at a time so that memory stays bounded.

`proven_sha256` is the whole of `tersor verify` for one tensor: it decodes, hashes what came out,
encodes that again and compares with what is stored. The last step finds flipped bits that decode
to the same values, in padding: the stored form of a tensor is unique (FORMAT.md section 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tersor.codec import Packed, decode_strips, encode
from tersor.codec.packed import check_offsets
from tersor.format.constants import ALIGN, TAIL, TILE_ROWS
from tersor.format.dtypes import itemsize
from tersor.format.errors import NotCanonical

U8 = NDArray[np.uint8]

_STEP_BYTES = 32 << 20  # original bytes decoded at a time


def strips(packed: Packed, where: str = "tensor") -> Iterator[tuple[int, int, U8]]:
    """Decode piece by piece: (first strip, stop strip, their original bytes)."""
    check_offsets(packed, where)
    grid = packed.grid
    step = max(1, _STEP_BYTES // (TILE_ROWS * grid.cols * itemsize(packed.dtype)))
    for first in range(0, grid.strips, step):
        stop = min(first + step, grid.strips)
        yield first, stop, decode_strips(packed, first, stop, where)


def equals(packed: Packed, data: U8) -> bool:
    """Whether `packed` decodes to exactly `data` (1-D uint8)."""
    at = 0
    for _, _, piece in strips(packed):
        if not np.array_equal(piece, data[at : at + piece.size]):
            return False
        at += piece.size
    return at == data.size


def proven_sha256(packed: Packed, where: str = "tensor", also: Callable[[U8], None] | None = None) -> str:
    """SHA-256 of the decoded bytes; NotCanonical unless they encode to what is stored.

    `also` sees every decoded piece, in order.
    """
    digest = hashlib.sha256()
    tile_cols = packed.grid.tile_cols
    for first, stop, piece in strips(packed, where):
        digest.update(piece.data)
        if also is not None:
            also(piece)
        offsets = packed.offsets[first * tile_cols : stop * tile_cols + 1].astype(np.int64)
        stored = packed.tiles[int(offsets[0]) * ALIGN : int(offsets[-1]) * ALIGN]
        rows = piece.size // (packed.grid.cols * itemsize(packed.dtype))
        try:
            again = encode(piece, packed.dtype, (rows, packed.grid.cols), packed.book)
        except ValueError as error:  # the book has no code for a decoded symbol: impossible unless damaged
            raise NotCanonical(f"{where}: {error}; the data is damaged") from error
        if not (
            np.array_equal(again.offsets, offsets - offsets[0])
            and np.array_equal(again.tiles[:-TAIL], stored)
        ):
            raise NotCanonical(
                f"{where}: rows {first * TILE_ROWS} to {first * TILE_ROWS + rows} are stored otherwise than an "
                f"encoder writes them; the data is damaged"
            )
    if packed.tiles[-TAIL:].any():
        raise NotCanonical(f"{where}: the spare bytes behind the last tile are not zero; the data is damaged")
    return digest.hexdigest()
