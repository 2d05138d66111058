"""Layouts in memory that a product reads directly, behind one interface.

A `Form` is what a layout's arrays do not say themselves: sizes, and how to read them. The arrays
travel beside it, as parameters of some module. Every layout keeps strips of 16 rows one after the
other, so rows can be cut out of its arrays without a copy, and matrices of equal width be put one
below the other: what was three products of one input becomes one (`tersor.nn.joint`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from tersor.kernels.window import ops  # noqa: F401  (defines the operators)
from tersor.kernels.window.layout import STRIP_ROWS, Geometry

Arrays = tuple[Tensor, ...]


class Form(Protocol):
    """A matrix (rows, cols) of bfloat16 in some layout."""

    names: ClassVar[tuple[str, ...]]  # of the arrays, in their order

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    def decode(self, arrays: Arrays) -> Tensor:
        """The matrix (rows, cols)."""
        ...

    def linear(self, x: Tensor, arrays: Arrays, bias: Tensor | None, exact: bool) -> Tensor:
        """x (..., cols) bfloat16 -> (..., rows); `exact`: by decoding and torch's product."""
        ...

    def cut(self, arrays: Arrays, first: int, rows: int) -> tuple[Form, Arrays]:
        """Rows [first, first + rows), views; `first` is a multiple of 16."""
        ...

    def joins(self, other: Form) -> bool:
        """Whether `other` may be put below: all but the last of a pile have full strips."""
        ...

    def join(self, arrays: Sequence[Arrays], rows: int) -> tuple[Form, Arrays]:
        """Matrices one below the other, `rows` in all; this is the first one's form."""
        ...


@dataclass(frozen=True)
class WindowForm:
    """The lossless `fast` layout of a bfloat16 matrix (`tersor.kernels.window.layout`)."""

    rows: int
    cols: int
    names: ClassVar[tuple[str, ...]] = ("blocks", "places", "records")

    @classmethod
    def pack(cls, weight: Tensor) -> tuple[Self, Arrays]:
        """A matrix brought into this layout."""
        return cls(*weight.shape), tuple(torch.ops.tersor.window_pack(weight))

    def decode(self, arrays: Arrays) -> Tensor:
        """The matrix (rows, cols)."""
        weight: Tensor = torch.ops.tersor.window_decode(*arrays, self.rows, self.cols)
        return weight

    def linear(self, x: Tensor, arrays: Arrays, bias: Tensor | None, exact: bool) -> Tensor:
        """x (..., cols) -> (..., rows)."""
        y: Tensor = torch.ops.tersor.window_linear(x, *arrays, bias, self.rows, self.cols, exact)
        return y

    def cut(self, arrays: Arrays, first: int, rows: int) -> tuple[Form, Arrays]:
        """Views of the strips' blocks and places; these say where in all the records theirs are."""
        blocks, places, records = arrays
        before, part = Geometry(first, self.cols), Geometry(rows, self.cols)
        cut_blocks = blocks.narrow(0, before.block_bytes, part.block_bytes)
        return replace(self, rows=rows), (
            cut_blocks,
            places.narrow(0, before.records, part.records + 1),
            records,
        )

    def joins(self, other: Form) -> bool:
        """Equal width, and this one's last strip is full."""
        return isinstance(other, WindowForm) and other.cols == self.cols and self.rows % STRIP_ROWS == 0

    def join(self, arrays: Sequence[Arrays], rows: int) -> tuple[Form, Arrays]:
        """Blocks and records one after the other; places moved on by the records before."""
        blocks, places, records = zip(*arrays, strict=True)
        starts = [places[0][:1]]
        for part in places:
            starts.append(part[1:] + starts[-1][-1])
        return replace(self, rows=rows), (torch.cat(blocks), torch.cat(starts), torch.cat(records))
