"""The dequantiser in torch, bit for bit the one in `dequantize.py`, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tersor.codec.quantized import arithmetic_torch as arithmetic
from tersor.codec.quantized.dequantize import bases, inverse
from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.matrix import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP, Quantized
from tersor.codec.quantized.rounding import F16_MAX

_STEP = 1 << 24  # weights at a time on a GPU: its scratch is bounded

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def dequantize(q: Quantized | Integers, device: torch.device | str = "cpu") -> Tensor:
    """The weights, (R, C) of `q.dtype` in original column order, on `device`."""

    def put(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(device)

    if isinstance(q, Integers):
        return integer_weights(put(q.codes), put(q.steps), TORCH_DTYPES[q.dtype])
    stats = put(q.stats).float().repeat_interleave(q.run, dim=0)[: q.shape[0]]
    scale, zero = stats[..., SCALE_MIN], stats[..., ZERO_MIN]
    if q.stat_bits:
        scale = arithmetic.statistic(scale, stats[..., SCALE_STEP], put(q.scale_codes))
        zero = arithmetic.statistic(zero, stats[..., ZERO_STEP], put(q.zero_codes))
    weight = grid_weights(put(q.codes), scale, zero, q.group)
    weight.view(-1)[put(q.outlier_index)] += put(q.outlier_value).float()
    weight = rounded(weight.mul_(q.unit), TORCH_DTYPES[q.dtype])
    return weight if q.order is None else weight[:, put(inverse(q.order))]


def grid_weights(codes: Tensor, scale: Tensor, zero: Tensor, group: int) -> Tensor:
    """The bases of codes (R, C) on the grids of scale and zero (R, G), (R, C) float32."""
    a, b = arithmetic.grid(scale, zero)
    if codes.device.type == "cpu":  # without torch's passes over memory, fifteen of them
        return torch.from_numpy(bases(a.numpy(), b.numpy(), codes.numpy(), group))
    rows, columns = codes.shape
    weight = torch.empty(codes.shape, device=codes.device)
    step = max(1, _STEP // columns)
    for first in range(0, rows, step):
        some = slice(first, first + step)
        wide_a, wide_b = (x[some].repeat_interleave(group, dim=1)[:, :columns] for x in (a, b))
        weight[some] = arithmetic.base(wide_a, wide_b, codes[some])
    return weight


def integer_weights(codes: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """codes (R, C) int8 times steps (C,) float32, rounded to `dtype`."""
    return rounded(codes.float() * steps, dtype)


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 rounded to the type of the weight."""
    return to_f16(weight) if dtype == torch.float16 else weight.to(dtype)


def to_f16(x: Tensor) -> Tensor:
    """`rounding.to_f16` for tensors."""
    return x.clamp(-F16_MAX, F16_MAX).to(torch.float32).to(torch.float16)
