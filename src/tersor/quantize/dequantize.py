"""The dequantiser in NumPy. `quantized.py` has the formulas; every other one must match it bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tersor.quantize.quantized import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP, Quantized
from tersor.quantize.stored import F32, round_weight


def statistics(q: Quantized) -> tuple[F32, F32]:
    """Scale and zero of every group, both (R, G) float32."""
    stats = np.repeat(q.stats.astype(np.float32), q.settings.run, axis=0)[: q.shape[0]]
    scale = stats[..., SCALE_MIN] + stats[..., SCALE_STEP] * q.scale_codes.astype(np.float32)
    zero = stats[..., ZERO_MIN] + stats[..., ZERO_STEP] * q.zero_codes.astype(np.float32)
    return scale, zero


def dequantize(q: Quantized) -> F32:
    """The weights, (R, C) in original column order: values of `q.dtype`, held as float32."""
    columns = q.shape[1]
    group = q.settings.group_size(columns)
    scale, zero = (np.repeat(x, group, axis=1)[:, :columns] for x in statistics(q))
    weight: F32 = scale * (q.codes.astype(np.float32) - zero)
    flat = weight.reshape(-1)
    flat[q.outlier_index] += q.outlier_value.astype(np.float32)
    weight = round_weight(weight * np.float32(q.unit), q.dtype)
    return weight if q.order is None else weight[:, inverse(q.order)]


def inverse(order: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The permutation that undoes `order`."""
    undo = np.empty(len(order), dtype=np.int64)
    undo[order] = np.arange(len(order))
    return undo
