"""Layouts in memory that a product reads directly, behind one interface.

A `Form` is what a layout's arrays do not say themselves: sizes, and how to read them. The arrays
travel beside it, as parameters of some module. Every layout keeps strips of 16 rows one after the
other (`tersor.kernels.fused.layout`), so rows can be cut out of its arrays without a copy, and
matrices of equal kind be put one below the other: what was three products of one input becomes
one (`tersor.nn.joint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tersor.format.constants import TILE_ROWS
from tersor.format.manifest import TensorEntry

Arrays = tuple[Tensor, ...]


class Form(Protocol):
    """A matrix (rows, cols) of bfloat16 in some layout."""

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays, in their order."""
        ...

    def decode(self, arrays: Arrays) -> Tensor:
        """The matrix (rows, cols)."""
        ...

    def linear(self, x: Tensor, arrays: Arrays, bias: Tensor | None, exact: bool) -> Tensor:
        """x (..., cols) bfloat16 -> (..., rows); `exact`: by decoding and torch's product."""
        ...

    def cut(self, arrays: Arrays, first: int, rows: int) -> tuple[Form, Arrays]:
        """Rows [first, first + rows), views; `first` is a multiple of 16."""
        ...

    def joins(self, arrays: Arrays, other: Form, others: Arrays) -> bool:
        """Whether `other`, with its arrays, may be put below: all but the last of a pile have full strips."""
        ...

    def join(self, pile: Sequence[Arrays], rows: int) -> tuple[Form, Arrays]:
        """Matrices one below the other, `rows` in all; this is the first one's form."""
        ...

    def at_rest(self, arrays: Arrays, entry: TensorEntry, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored arrays that `entry` describes, by suffix; `kept`: those that were set aside."""
        ...


def pile_places(places: Sequence[Tensor]) -> Tensor:
    """Where each record begins when matrices' records follow one another: each one's places, moved on."""
    starts = [places[0][:1]]
    for part in places:
        starts.append(part[1:] + starts[-1][-1])
    return torch.cat(starts)


def cut_strips(stages: Tensor, places: Tensor, rows: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Views of the stages and places of rows [first, first + count) of `rows`; `first` is a multiple of 16.

    Places go on counting from where all records begin, so these are not cut.
    """
    strips, before, own = (-(-n // TILE_ROWS) for n in (rows, first, count))
    stage, place = stages.numel() // strips, (places.numel() - 1) // strips
    return stages.narrow(0, before * stage, own * stage), places.narrow(0, before * place, own * place + 1)
