"""A matrix on two-level grids: what the quantiser hands out and the dequantiser takes in.

The matrix is R x C (outputs x inputs). Its columns are stored in the order in which they were
quantised; `order[j]` is the original column of stored column j. Numbers are relative to `unit`, a
power of two chosen so that the largest weight lies in [1, 2): binary16 statistics then keep their
precision for any scale of weights, and the scaling itself is exact.

    group   i = j // g            run  k = r // h
    scale   s = RN16(scale_min[k,i] + scale_step[k,i] * scale_codes[r,i])
    zero    z = RN16( zero_min[k,i] +  zero_step[k,i] *  zero_codes[r,i])
    grid    a = RNbf(s)     b = RNbf(-(a * z))
    base      = RNbf(a * codes[r,j] + b)
    weight    = (base + outlier[r,j]) * unit, rounded to dtype

RN16 and RNbf round the exact value once, to binary16 and bfloat16 (`arithmetic.py` says why and how).
Every implementation, on any hardware, can therefore be bit-exact. Where there is no outlier nothing is
added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.format.constants import TILE_COLS, TILE_ROWS
from tersor.format.layout import row_bytes

SCALE_STEP, SCALE_MIN, ZERO_STEP, ZERO_MIN = range(4)  # last axis of `stats`


@dataclass(frozen=True)
class Bits:
    """Storage of a matrix in bits, by what they hold."""

    weights: int
    codes: int
    statistics: int
    outliers: int

    @property
    def total(self) -> int:
        return self.codes + self.statistics + self.outliers

    @property
    def per_weight(self) -> float:
        return self.total / max(self.weights, 1)

    def __add__(self, other: Bits) -> Bits:
        return Bits(
            self.weights + other.weights,
            self.codes + other.codes,
            self.statistics + other.statistics,
            self.outliers + other.outliers,
        )


@dataclass(frozen=True)
class Quantized:
    """One quantised R x C matrix; G = ceil(C / g) groups, K = ceil(R / h) runs, N outliers."""

    width: int  # b: bits of a code, 2 to 8
    group: int  # g: columns that share a scale and a zero, 1 to C
    run: int  # h: rows whose scales of one group share a second-level grid; 1 with direct statistics
    stat_bits: int  # of a scale code and of a zero code; 0 stores both as 16-bit floats
    dtype: str  # of the original weights: "BF16", "F16" or "F32"
    unit: float  # power of two
    codes: npt.NDArray[np.uint8]  # (R, C)
    scale_codes: npt.NDArray[np.uint8]  # (R, G); zeros when statistics are stored directly
    zero_codes: npt.NDArray[np.uint8]  # (R, G)
    stats: npt.NDArray[np.float16]  # (K, G, 4): scale step, scale min, zero step, zero min
    outlier_index: npt.NDArray[np.int64]  # (N,), r * C + j, rising
    outlier_value: npt.NDArray[np.float16]  # (N,), weight minus base, in units
    order: npt.NDArray[np.int32] | None  # (C,); None is the identity

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def outliers(self) -> int:
        """How many weights are kept as outliers."""
        return len(self.outlier_value)

    def bits(self) -> Bits:
        """Exact storage (`parts`): codes, both statistic levels with the column order, outliers by tile.

        An outlier costs 32 bits: 16 of value and 16 of place in its tile of 16 x 256. Each tile's
        count of outliers costs 16 bits when the matrix has any.
        """
        rows, columns = self.shape
        runs, groups, _ = self.stats.shape
        statistics = 32 * rows * groups
        if self.stat_bits:
            statistics = 8 * rows * row_bytes(2 * groups, self.stat_bits) + 64 * runs * groups
        if self.order is not None:
            statistics += columns * (16 if columns <= 1 << 16 else 32)
        outliers = 32 * len(self.outlier_value)
        if outliers:
            outliers += 16 * -(-rows // TILE_ROWS) * -(-columns // TILE_COLS)
        return Bits(rows * columns, 8 * rows * row_bytes(columns, self.width), statistics, outliers)
