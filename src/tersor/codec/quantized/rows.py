"""Rows cut out of a quantised matrix: a quantised matrix again, of the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.matrix import Quantized


def cut_rows(q: Quantized | Integers, first: int, stop: int) -> Quantized | Integers:
    """Rows `first` to `stop`; of a `Quantized`, `first` must be a multiple of its `run`."""
    if isinstance(q, Integers):
        return replace(q, codes=q.codes[first:stop])
    if first % q.run:
        raise ValueError(f"row {first} is inside a grid of {q.run} rows")
    columns = q.shape[1]
    begin, end = np.searchsorted(q.outlier_index, [first * columns, stop * columns])
    return replace(
        q,
        codes=q.codes[first:stop],
        scale_codes=q.scale_codes[first:stop],
        zero_codes=q.zero_codes[first:stop],
        stats=q.stats[first // q.run : -(-stop // q.run)],
        outlier_index=q.outlier_index[begin:end] - first * columns,
        outlier_value=q.outlier_value[begin:end],
    )
