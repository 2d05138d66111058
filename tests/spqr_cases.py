"""Quantised matrices in every kind of the `spqr` layout, odd sizes and hostile outliers among them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from matrices import grid_matrix
from tersor.codec.quantized.dequantize import dequantize_rows
from tersor.codec.quantized.matrix import Quantized
from tersor.codec.quantized.parts import entry_of, to_parts
from tersor.codec.quantized.rounding import round_bf16
from tersor.format.parameters import SpqrParameters
from tersor.kernels.spqr.layout import Geometry, held

PARTS = ("_codes", "_levels", "_stats", "_counts", "_places", "_deltas")

# group, run and statistic bits as stored -> group and levels as held
KINDS: dict[str, tuple[tuple[int, int, int], tuple[int, int]]] = {
    "g16 two levels": ((16, 16, 3), (16, 2)),
    "g32 two levels": ((32, 64, 4), (32, 2)),
    "g64 two levels": ((64, 32, 2), (32, 2)),
    "g16 direct": ((16, 1, 0), (16, 1)),
    "g32 direct": ((32, 1, 0), (32, 1)),
    "g128": ((128, 16, 3), (128, 1)),
    "g256 direct": ((256, 1, 0), (128, 1)),
    "wide codes": ((32, 16, 8), (32, 1)),
    "grids within strips": ((16, 5, 3), (16, 1)),
}
SIZES = [(16, 128), (1, 40), (33, 300), (70, 1100)]


def matrix(rows: int, cols: int, kind: str = "g32 two levels", **options: Any) -> Quantized:
    """A random matrix of this kind; a group is no longer than a row."""
    (group, run, stat_bits), _ = KINDS[kind]
    options = {"outliers": rows * cols // 40, "ordered": False, "seed": rows * cols} | options
    return grid_matrix(rows, cols, group=min(group, cols), run=run, stat_bits=stat_bits, **options)


def with_any_statistics(q: Quantized, seed: int = 0) -> Quantized:
    """The same with statistics of every sign and size, zeros and subnormals too, none that overflows."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, q.stats.shape).astype(np.uint16)
    most = 2000 if q.stat_bits else 65504
    stats = bits.view(np.float16)
    return replace(q, stats=np.where(np.abs(stats.astype(np.float32)) <= most, stats, np.float16(0)))


def with_full_row(q: Quantized, row: int) -> Quantized:
    """The same with an outlier at every place of one row, besides its own."""
    rows, cols = q.shape
    values = np.zeros(rows * cols, np.float16)
    values[q.outlier_index] = q.outlier_value
    full = slice(row * cols, (row + 1) * cols)
    values[full] = np.random.default_rng(row).normal(0, 1, cols).astype(np.float16)
    index = np.flatnonzero(values)
    return replace(q, outlier_index=index, outlier_value=values[index])


def without_outliers(q: Quantized) -> Quantized:
    """The same on its grid alone."""
    return replace(q, outlier_index=np.empty(0, np.int64), outlier_value=np.empty(0, np.float16))


class Stored(NamedTuple):
    """The arguments of `spqr_pack`, and what the packed form's operators are told besides."""

    pack: tuple[Any, ...]
    held: tuple[int, ...]  # rows, cols, bits, group, levels, unit
    order: torch.Tensor | None
    geometry: Geometry


def stored(q: Quantized, device: str = "cpu") -> Stored:
    """The matrix as a checkpoint stores it."""
    parts = to_parts(q)
    entry = entry_of(q, parts)
    p, geometry = entry.parameters, held(entry)
    assert isinstance(p, SpqrParameters)
    assert geometry is not None
    arrays = [torch.from_numpy(parts[n].copy()).to(device) if n in parts else None for n in PARTS]
    order = None if q.order is None else torch.from_numpy(q.order).to(device)
    kind = (*q.shape, p.bits, geometry.group, geometry.levels, p.unit)
    return Stored((*arrays, list(q.shape), p.bits, p.group, p.rows, p.stat_bits), kind, order, geometry)


def with_true_outliers(q: Quantized) -> Quantized:
    """The same with outliers as a quantiser makes them: base and value add up to about a bfloat16."""
    base = dequantize_rows(without_outliers(replace(q, unit=1.0, order=None)), 0, len(q.codes))
    own = base.reshape(-1)[q.outlier_index]
    weight = round_bf16(own + q.outlier_value.astype(np.float32))
    return replace(q, outlier_value=(weight - own).astype(np.float16))
