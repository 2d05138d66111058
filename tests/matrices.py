"""Quantised matrices out of random numbers: every code, statistic and outlier, no quantiser needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.matrix import Quantized
from tersor.codec.quantized.rounding import round_bf16


def grid_matrix(
    rows: int = 40,
    columns: int = 300,
    width: int = 4,
    group: int = 16,
    run: int = 16,
    stat_bits: int = 3,
    dtype: str = "BF16",
    outliers: int = 200,
    ordered: bool = True,
    unit: float = 2.0**-5,
    seed: int = 0,
) -> Quantized:
    """An R x C matrix for codec `spqr`."""
    rng = np.random.default_rng(seed)
    groups, runs = -(-columns // group), -(-rows // run)
    levels = 1 << stat_bits if stat_bits else 1
    stats = np.abs(rng.normal(0, 0.3, (runs, groups, 4))).astype(np.float16)
    if not stat_bits:
        stats[..., 0] = stats[..., 2] = 0
    index = np.sort(rng.choice(rows * columns, outliers, replace=False)).astype(np.int64)
    return Quantized(
        width,
        group,
        run,
        stat_bits,
        dtype,
        unit,
        rng.integers(0, 1 << width, (rows, columns)).astype(np.uint8),
        rng.integers(0, levels, (rows, groups)).astype(np.uint8),
        rng.integers(0, levels, (rows, groups)).astype(np.uint8),
        stats,
        index,
        rng.normal(0, 1, outliers).astype(np.float16),
        rng.permutation(columns).astype(np.int32) if ordered else None,
    )


def integer_matrix(rows: int = 40, columns: int = 300, dtype: str = "BF16", seed: int = 0) -> Integers:
    """An R x C matrix for codec `integers`."""
    rng = np.random.default_rng(seed)
    codes = np.clip(np.rint(rng.normal(0, 4, (rows, columns))), -127, 127).astype(np.int8)
    return Integers(dtype, codes, round_bf16(rng.uniform(1e-3, 1e-2, columns).astype(np.float32)))


VARIANTS: dict[str, dict[str, Any]] = {
    **{f"{width} bits": {"width": width} for width in range(2, 9)},
    "F16": {"dtype": "F16"},
    "F32": {"dtype": "F32"},
    "no outliers": {"outliers": 0},
    "only outliers": {"rows": 17, "columns": 70, "outliers": 17 * 70},
    "in order": {"ordered": False},
    "direct statistics": {"stat_bits": 0, "run": 1, "group": 128},
    "whole rows": {"stat_bits": 0, "run": 1, "group": 300, "outliers": 0},
    "8-bit statistics": {"stat_bits": 8, "run": 64},
    "nothing divides": {"rows": 33, "columns": 517, "group": 7, "run": 5},
    "one weight": {"rows": 1, "columns": 1, "group": 1, "outliers": 1},
    "far from one": {"unit": 2.0**-40, "dtype": "F32"},
}
