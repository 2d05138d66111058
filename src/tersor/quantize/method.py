"""Either way of quantising a matrix behind one pair of functions: grids (SpQR, GPTQ, RTN) or integers."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.quantize import dequantize_torch, integers_torch, spqr
from tersor.quantize.integers import Integers, IntegerSettings
from tersor.quantize.quantized import Quantized
from tersor.quantize.settings import Settings

Method = Settings | IntegerSettings
Result = Quantized | Integers


def quantize(
    weight: Tensor,
    h: Tensor,
    method: Method,
    compute: torch.dtype = torch.float32,
    served: torch.dtype | None = None,
    name: str = "?",
) -> Result:
    """Quantise `weight` (R, C) under the Hessian `h` (C, C); see `spqr.quantize`."""
    if isinstance(method, IntegerSettings):
        return integers_torch.quantize(weight, h, method, compute, served, name)
    return spqr.quantize(weight, h if method.feedback else None, method, compute, served, name)


def dequantize(q: Result, device: torch.device | str = "cpu") -> Tensor:
    """The weights, (R, C) of `q.dtype`, on `device`."""
    if isinstance(q, Integers):
        return integers_torch.dequantize(q, device)
    return dequantize_torch.dequantize(q, device)
