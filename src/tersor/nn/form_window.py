"""The `fast` layout of a lossless weight: the same bits, placed so that a GPU multiplies from them.

At rest and in the `compact` layout exponents are entropy coded, and a product must decode the
matrix to memory first. The `fast` layout (`tersor.kernels.window.layout`) spends 0.7 bit per
weight more and lets the product read the compressed weights themselves: at batch 1 it is faster
than the plain bfloat16 product, because it reads 11.4 bits where that reads 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tersor.format.constants import TILE_ROWS
from tersor.format.layout import BOOK, OFFSETS, TILES
from tersor.format.manifest import TensorEntry
from tersor.kernels.window import ops as ops  # they define the operators
from tersor.kernels.window import rows as row_ops  # noqa: F401
from tersor.nn.forms import Arrays, Form, cut_strips, pile_places


@dataclass(frozen=True)
class WindowForm:
    """A bfloat16 matrix (rows, cols)."""

    rows: int
    cols: int

    @classmethod
    def pack(cls, weight: Tensor) -> tuple[WindowForm, Arrays]:
        """A matrix brought into this layout."""
        return cls(*weight.shape), tuple(torch.ops.tersor.window_pack(weight))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays."""
        return "blocks", "places", "records"

    def decode(self, arrays: Arrays) -> Tensor:
        """The matrix (rows, cols)."""
        weight: Tensor = torch.ops.tersor.window_decode(*arrays, self.rows, self.cols)
        return weight

    def linear(self, x: Tensor, arrays: Arrays, bias: Tensor | None, exact: bool) -> Tensor:
        """x (..., cols) -> (..., rows)."""
        y: Tensor = torch.ops.tersor.window_linear(x, *arrays, bias, self.rows, self.cols, exact)
        return y

    def gather(self, arrays: Arrays, rows: Tensor) -> Tensor:
        """Rows of the matrix: (n, cols) for int64 `rows` (n,)."""
        made: Tensor = torch.ops.tersor.window_decode_rows(*arrays, rows, self.rows, self.cols)
        return made

    def cut(self, arrays: Arrays, first: int, rows: int) -> tuple[Form, Arrays]:
        """Views of the strips' blocks and places; these say where in all the records theirs are."""
        blocks, places, records = arrays
        return replace(self, rows=rows), (*cut_strips(blocks, places, self.rows, first, rows), records)

    def joins(self, arrays: Arrays, other: Form, others: Arrays) -> bool:
        """Equal width, and this one's last strip is full."""
        return isinstance(other, WindowForm) and other.cols == self.cols and self.rows % TILE_ROWS == 0

    def join(self, pile: Sequence[Arrays], rows: int) -> tuple[Form, Arrays]:
        """Blocks and records one after the other."""
        blocks, places, records = zip(*pile, strict=True)
        return replace(self, rows=rows), (torch.cat(blocks), pile_places(places), torch.cat(records))

    def at_rest(self, arrays: Arrays, entry: TensorEntry, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Decoded and encoded anew: the encoder is deterministic."""
        tiles, offsets, book = torch.ops.tersor.huffman_encode(self.decode(arrays))
        return {BOOK: book, OFFSETS: offsets, TILES: tiles}
