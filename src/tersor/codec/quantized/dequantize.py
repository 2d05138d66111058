"""The dequantiser in NumPy, its inner loop in numba where that is installed: the truth that others match bit for bit.

`matrix.py` has the formulas, `arithmetic.py` their numbers one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tersor.codec.quantized import arithmetic
from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.matrix import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP, Quantized
from tersor.codec.quantized.rounding import F16, F32, round_weight, to_bytes

try:
    from tersor.codec.quantized.fast import bases as bases
except ImportError:  # no numba
    from tersor.codec.quantized.arithmetic import bases as bases

_STEP_WEIGHTS = 1 << 17  # dequantised at a time: what lies in a core's cache a few times over


def dequantize(q: Quantized | Integers) -> F32:
    """The weights, (R, C) in original column order: values of `q.dtype`, held as float32."""
    return dequantize_rows(q, 0, q.shape[0])


def dequantize_rows(q: Quantized | Integers, first: int, stop: int) -> F32:
    """Rows `first` to `stop` of the weights, (stop - first, C)."""
    if isinstance(q, Integers):
        return round_weight(q.codes[first:stop].astype(np.float32) * q.steps, q.dtype)
    columns = q.shape[1]
    weight = bases(*arithmetic.grid(*statistics(q, first, stop)), q.codes[first:stop], q.group)
    begin, end = np.searchsorted(q.outlier_index, [first * columns, stop * columns])
    flat = weight.reshape(-1)
    flat[q.outlier_index[begin:end] - first * columns] += q.outlier_value[begin:end].astype(np.float32)
    weight = round_weight(weight * np.float32(q.unit), q.dtype)
    return weight if q.order is None else weight[:, inverse(q.order)]


def weight_bytes(q: Quantized | Integers) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of the weights in `q.dtype`, row-major, some rows at a time."""
    rows, columns = q.shape
    step = max(1, _STEP_WEIGHTS // max(columns, 1))
    for first in range(0, rows, step):
        yield to_bytes(dequantize_rows(q, first, min(first + step, rows)), q.dtype)


def weight_sha256(q: Quantized | Integers) -> str:
    """SHA-256 of those bytes."""
    digest = hashlib.sha256()
    for piece in weight_bytes(q):
        digest.update(piece.data)
    return digest.hexdigest()


def inverse(order: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The permutation that undoes `order`."""
    undo = np.empty(len(order), dtype=np.int64)
    undo[order] = np.arange(len(order))
    return undo


def statistics(q: Quantized, first: int, stop: int) -> tuple[F16, F16]:
    """Scale and zero of every group of rows `first` to `stop`, both (stop - first, G)."""
    stats = q.stats[np.arange(first, stop) // q.run]
    if not q.stat_bits:
        return stats[..., SCALE_MIN], stats[..., ZERO_MIN]
    scale = arithmetic.statistic(stats[..., SCALE_MIN], stats[..., SCALE_STEP], q.scale_codes[first:stop])
    zero = arithmetic.statistic(stats[..., ZERO_MIN], stats[..., ZERO_STEP], q.zero_codes[first:stop])
    return scale, zero
