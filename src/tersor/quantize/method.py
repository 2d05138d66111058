"""Either way of quantising a matrix behind one pair of functions: grids (SpQR, GPTQ, RTN) or integers."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.codec.quantized.dequantize_torch import dequantize
from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.matrix import Quantized
from tersor.quantize import integers_torch, spqr
from tersor.quantize.integers import IntegerSettings
from tersor.quantize.settings import Settings

__all__ = ["Method", "Result", "dequantize", "quantize"]

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
