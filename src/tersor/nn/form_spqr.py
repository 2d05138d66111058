"""The `spqr` layout of a quantised weight: codes in the order in which tensor cores want them.

The layout (`tersor.kernels.spqr.layout`) holds 4 bits as 4.4 and gives exactly the weights of the
stored form. Codes and outliers come back from it as they were; statistics, which it holds as
products want them, are kept as stored in host memory (0.4 bits per weight), for saving.

A matrix's numbers are relative to a power of two of its own, its unit, and a product multiplies by
it at the end. To be joined, siblings need one unit: the smallest of theirs, the scales and outliers
of the others being larger by the quotient. Every rounding on the way to a weight is relative, and where
binary16's is not (subnormal numbers) the sums rounded are exact: so no weight changes as long as all
stays in binary16's range, and where it does not a matrix keeps its own unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.codec.quantized.matrix import SCALE_MIN, SCALE_STEP
from tersor.format.constants import TILE_ROWS
from tersor.format.layout import CODES, COUNTS, DELTAS, LEVELS, ORDER, PLACES, STATS
from tersor.format.manifest import TensorEntry
from tersor.format.parameters import SpqrParameters
from tersor.kernels.spqr import (
    ops,  # noqa: F401  (defines the operators)
    unpacking,
)
from tersor.kernels.spqr.layout import Geometry, held
from tersor.nn.forms import Arrays, Form, cut_strips, pile_places

_KEPT = (LEVELS, STATS)
_F16_OVERFLOW = 65520.0  # rounds to infinity


@dataclass(frozen=True)
class SpqrForm:
    """A quantised matrix (rows, cols) in units of 2^unit; `bits`, `group`, `levels` as held, not as stored."""

    rows: int
    cols: int
    bits: int
    group: int
    levels: int
    unit: int
    ordered: bool  # whether there is an array of the columns' order

    @classmethod
    def pack(
        cls, entry: TensorEntry, stored: Mapping[str, Tensor], unit: int | None = None
    ) -> tuple[SpqrForm, Arrays, dict[str, Tensor]]:
        """Form, arrays, and what to keep for `at_rest`, of a tensor's stored arrays (by suffix).

        unit: to use if the numbers fit it, at most the tensor's own; by default that.
        """
        p, geometry = entry.parameters, held(entry)
        assert isinstance(p, SpqrParameters) and geometry is not None
        order = () if not p.order else (_as_int32(stored[ORDER]),)
        kept = {suffix: stored[suffix].detach().cpu() for suffix in _KEPT if suffix in stored}

        if unit is not None and unit != p.unit:
            rescaled = _rescaled(stored, 2.0 ** (p.unit - unit), p)
            unit, stored = (p.unit, stored) if rescaled is None else (unit, rescaled)
        arrays = [stored.get(suffix) for suffix in (CODES, LEVELS, STATS, COUNTS, PLACES, DELTAS)]
        made = torch.ops.tersor.spqr_pack(*arrays, entry.shape, p.bits, p.group, p.rows, p.stat_bits)
        own = p.unit if unit is None else unit
        form = cls(geometry.rows, geometry.cols, p.bits, geometry.group, geometry.levels, own, p.order)
        return form, (*made, *order), kept

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays."""
        return ("stages", "places", "records", "order")[: 4 if self.ordered else 3]

    @property
    def geometry(self) -> Geometry:
        """What follows from size and kind."""
        return Geometry(self.rows, self.cols, self.bits, self.group, self.levels)

    def decode(self, arrays: Arrays) -> Tensor:
        """The matrix (rows, cols)."""
        weight: Tensor = torch.ops.tersor.spqr_decode(*arrays[:3], self._order(arrays), *self._numbers)
        return weight

    def linear(self, x: Tensor, arrays: Arrays, bias: Tensor | None, exact: bool) -> Tensor:
        """x (..., cols) -> (..., rows)."""
        if exact:
            return F.linear(x, self.decode(arrays), bias)
        y: Tensor = torch.ops.tersor.spqr_linear(x, *arrays[:3], self._order(arrays), bias, *self._numbers)
        return y

    def cut(self, arrays: Arrays, first: int, rows: int) -> tuple[Form, Arrays]:
        """Views of the strips' stages and places; these say where in all the records theirs are."""
        stages, places, records, *order = arrays
        cut = cut_strips(stages, places, self.rows, first, rows)
        return replace(self, rows=rows), (*cut, records, *order)

    def joins(self, arrays: Arrays, other: Form, others: Arrays) -> bool:
        """Alike but for the rows, the columns in one order, and this one's last strip full."""
        alike = isinstance(other, SpqrForm) and replace(other, rows=self.rows) == self
        same_order = not self.ordered or (alike and torch.equal(arrays[3], others[3]))
        return alike and same_order and self.rows % TILE_ROWS == 0

    def join(self, pile: Sequence[Arrays], rows: int) -> tuple[Form, Arrays]:
        """Stages and records one after the other."""
        stages, places, records = zip(*(arrays[:3] for arrays in pile), strict=True)
        whole = (torch.cat(stages), pile_places(places), torch.cat(records), *pile[0][3:])
        return replace(self, rows=rows), whole

    def at_rest(self, arrays: Arrays, entry: TensorEntry, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes and outliers out of the layout, in the tensor's own unit again, and what was kept."""
        p = entry.parameters
        assert isinstance(p, SpqrParameters)
        stages, places, records = arrays[:3]
        parts = {CODES: unpacking.stored_codes(stages, self.geometry), **kept}
        if p.order:
            parts[ORDER] = _as_stored(arrays[3])
        if p.outliers:
            outliers = unpacking.stored_outliers(places, records, self.geometry)
            parts |= dict(zip((COUNTS, PLACES, DELTAS), outliers, strict=True))
            parts[DELTAS] = _times(parts[DELTAS], 2.0 ** (self.unit - p.unit))
        return parts

    @property
    def _numbers(self) -> tuple[int, ...]:
        return self.rows, self.cols, self.bits, self.group, self.levels, self.unit

    def _order(self, arrays: Arrays) -> Tensor | None:
        return arrays[3] if self.ordered else None


def _rescaled(stored: Mapping[str, Tensor], factor: float, p: SpqrParameters) -> dict[str, Tensor] | None:
    """Stored arrays with scales and outliers `factor` times as large; None if binary16 cannot hold them."""
    stats = stored[STATS].view(torch.float16).float()
    scales = [SCALE_STEP, SCALE_MIN] if p.stat_bits else [0]
    weights = [2.0**p.stat_bits - 1, 1.0] if p.stat_bits else [1.0]
    stats[..., scales] *= factor
    largest = (stats[..., scales].abs() * stats.new_tensor(weights)).sum(-1).max()
    rescaled = {**stored, STATS: stats.half().view(torch.uint16)}
    if DELTAS in stored:
        rescaled[DELTAS] = _times(stored[DELTAS], factor)
        largest = largest.maximum(rescaled[DELTAS].view(torch.float16).float().abs().max())
    return rescaled if float(largest) < _F16_OVERFLOW else None


def _times(stored: Tensor, factor: float) -> Tensor:
    """Binary16 as bits, times a power of two."""
    return (stored.view(torch.float16).float() * factor).half().view(torch.uint16)


def _as_int32(order: Tensor) -> Tensor:
    """A stored column order."""
    if order.dtype == torch.uint32:
        return order.view(torch.int32).contiguous()
    return order.view(torch.int16).int() & 0xFFFF


def _as_stored(order: Tensor) -> Tensor:
    """The inverse of `_as_int32`."""
    return order.view(torch.uint32) if len(order) > 1 << 16 else order.to(torch.int16).view(torch.uint16)
