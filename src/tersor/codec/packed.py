"""A compressed tensor in memory: the arrays that FORMAT.md stores, nothing more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.format.constants import ALIGN, TAIL
from tersor.format.dtypes import RAW_BYTES, itemsize
from tersor.format.errors import BadOffsets, UnknownDtype, UsageError, WrongShape
from tersor.format.layout import Grid

_REACH = 1 << 32  # units of 16 bytes that an offset can count: 64 GiB


@dataclass(frozen=True)
class Packed:
    """A tensor under the huffman codec.

    dtype: of the original, safetensors' spelling; shape: of the original;
    book: (256,) uint8 code lengths; offsets: (tiles + 1,) uint32 in units of 16 bytes;
    tiles: (16 * offsets[-1] + 16,) uint8.
    """

    dtype: str
    shape: tuple[int, ...]
    book: NDArray[np.uint8]
    offsets: NDArray[np.uint32]
    tiles: NDArray[np.uint8]

    @property
    def grid(self) -> Grid:
        """The tile grid of this tensor."""
        return Grid.of(self.shape)

    @property
    def elements(self) -> int:
        """Elements of the original tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes, index and tables included."""
        return self.book.nbytes + self.offsets.nbytes + self.tiles.nbytes

    @property
    def original_nbytes(self) -> int:
        """Bytes of the original tensor."""
        return self.elements * itemsize(self.dtype)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, everything counted."""
        return 8 * self.nbytes / self.elements


def tile_offsets(units: NDArray[np.unsignedinteger[Any]], shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """Where each tile begins (tiles + 1,), from the tiles' sizes; all in units of 16 bytes."""
    offsets = np.zeros(len(units) + 1, np.int64)
    np.cumsum(units, out=offsets[1:])
    check_reach(int(offsets[-1]), shape)
    return offsets.astype(np.uint32)


def check_reach(units: int, shape: tuple[int, ...]) -> None:
    """Raise UsageError if a tensor's tiles, so many units of 16 bytes, are more than offsets can count."""
    if units >= _REACH:
        raise UsageError(
            f"a tensor of shape {list(shape)} takes {units * ALIGN:,} bytes of tiles, and offsets of 32 bits in units "
            f"of {ALIGN} bytes end at {_REACH * ALIGN:,}; split the tensor in two"
        )


def check_offsets(packed: Packed, where: str = "tensor") -> None:
    """Raise unless the arrays have the sizes and the offsets the order that FORMAT.md demands."""
    if packed.dtype not in RAW_BYTES:
        raise UnknownDtype(f"{where}: codec 'huffman' cannot hold dtype {packed.dtype!r}")
    offsets, tiles = packed.offsets, packed.grid.tiles
    if packed.elements == 0 or packed.book.shape != (256,) or offsets.shape != (tiles + 1,):
        raise WrongShape(
            f"{where}: shape {packed.shape} needs a book of 256 and {tiles + 1} offsets; the data is damaged"
        )
    if offsets[0] != 0 or not (offsets[1:] > offsets[:-1]).all():
        raise BadOffsets(f"{where}: tile offsets must begin at 0 and grow; the data is damaged")
    end = int(offsets[-1]) * ALIGN + TAIL
    if packed.tiles.shape != (end,):
        raise BadOffsets(
            f"{where}: the offsets say {end} bytes of tiles, there are {packed.tiles.size}; the data is damaged"
        )
