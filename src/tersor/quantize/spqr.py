"""SpQR at full speed, in torch, on the CPU or a GPU; `reference.py` says what it computes.

The matrix is held transposed, (C, R), so that a column is contiguous. Columns are worked in blocks of
about 128: inside a block every column's error goes to the block's later columns at once; the rest of
the matrix gets the whole block's errors in one matrix product. Nothing waits for the device between
the first column and the last.

In float64 the result equals the reference's, number by number. In float32, the default, a weight that
lies within rounding of the middle between two codes may fall to the other side, and the feedback
carries that small difference on; the layer's error stays the same to a part in ten thousand.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tersor.codec.quantized import arithmetic_torch as arithmetic
from tersor.codec.quantized.dequantize_torch import to_f16
from tersor.codec.quantized.matrix import Quantized
from tersor.format.errors import UnknownDtype, UsageError
from tersor.quantize.factor import inverse_factor
from tersor.quantize.grid import Grid, fit, without_outliers
from tersor.quantize.order import column_order, settle
from tersor.quantize.reference import TINY_SCALE
from tersor.quantize.settings import BLOCK, Settings

DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def quantize(
    weight: Tensor,
    h: Tensor | None,
    settings: Settings,
    compute: torch.dtype = torch.float32,
    served: torch.dtype | None = None,
    name: str = "?",
) -> Quantized:
    """Quantise `weight` (R, C) of bf16, f16 or f32 under the Hessian `h` (C, C); None is the identity.

    Runs on the weight's device in the float type `compute`. `served` is the type of the weight when it
    is served, if `weight` holds it in a wider one; `name` is for messages. Raises `UsageError` when a
    weight is NaN or infinite and `UnknownDtype` for other types.
    """
    served = served or weight.dtype
    dtype = check_weight(weight, served, name)
    columns = weight.shape[1]
    unit = unit_of(weight)
    if h is None:
        order, upper = np.arange(columns, dtype=np.int32), None
    else:
        order = column_order(h.diagonal().double().cpu().numpy(), settings)
        places = torch.from_numpy(order).to(h.device, torch.int64)
        upper = inverse_factor(h[places][:, places], settings.percdamp).to(compute)
    w = weight.detach().to(compute).T[torch.from_numpy(order).to(weight.device, torch.int64)] / unit
    return settle(_Columns(w, upper, settings, served, unit).run().result(dtype), order, settings.act_order)


def check_weight(weight: Tensor, served: torch.dtype, name: str) -> str:
    """The name of the served type; raises unless `weight` is a finite matrix of a type that can be quantised."""
    if weight.dtype not in DTYPES or served not in DTYPES:
        raise UnknownDtype(f"tensor {name} is {weight.dtype}; only bf16, f16 and f32 can be quantised")
    if weight.ndim != 2:
        raise UsageError(f"tensor {name} has shape {tuple(weight.shape)}; only matrices can be quantised")
    if not torch.isfinite(weight).all():
        raise UsageError(
            f"tensor {name} holds NaN or infinite weights; it cannot be quantised, keep it lossless"
        )
    return DTYPES[served]


def unit_of(weight: Tensor) -> float:
    """The power of two that brings the largest weight into [1, 2); 1 when all are zero."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0


class _Columns:
    """The column loop over one matrix `w` (C, R) in units, which it consumes."""

    def __init__(
        self, w: Tensor, upper: Tensor | None, settings: Settings, weight_dtype: torch.dtype, unit: float
    ) -> None:
        self.w, self.upper, self.settings = w, upper, settings
        self.weight_dtype, self.unit = weight_dtype, unit
        self.d = torch.ones_like(w[:, 0]) if upper is None else upper.diagonal()
        self.sparse = math.isfinite(settings.tau)
        sensitivity = w.var(dim=1, unbiased=False) / self.d.square()
        self.limit = settings.tau * sensitivity.mean() if self.sparse else None
        self.grids: list[Grid] = []
        self.codes = torch.empty_like(w, dtype=torch.uint8)
        self.outlier = torch.zeros_like(w, dtype=torch.bool) if self.sparse else None
        self.delta = torch.empty_like(w, dtype=torch.float16) if self.sparse else None

    def run(self) -> _Columns:
        columns = len(self.w)
        group = self.settings.group_size(columns)
        # a block is whole groups, or a group is whole blocks: a grid is fitted where no update is owed
        block = BLOCK // group * group if group <= BLOCK else BLOCK if group % BLOCK == 0 else group
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            errors = self._block(start, stop, group)
            if self.settings.feedback and self.upper is not None and stop < columns:
                self.w[stop:] -= self.upper[start:stop, stop:].T @ errors
        return self

    def _block(self, start: int, stop: int, group: int) -> Tensor:
        """Quantise columns start to stop; their errors over d, (stop - start, R)."""
        w, d, feedback = self.w[start:stop], self.d[start:stop], self.settings.feedback
        upper = None if self.upper is None else self.upper[start:stop, start:stop]
        errors = torch.empty_like(w)
        for j in range(stop - start):
            if (start + j) % group == 0:
                self._fit(start + j, min(start + j + group, len(self.w)))
            served = self._column(start + j, self.grids[-1])
            errors[j] = (w[j] - served) / d[j]
            if feedback and upper is not None and j + 1 < stop - start:
                w[j + 1 :].addcmul_(upper[j, j + 1 :, None], errors[j], value=-1)
        return errors

    def _fit(self, start: int, stop: int) -> None:
        group = self.w[start:stop]
        if self.limit is not None:
            group = without_outliers(group, self.d[start:stop], self.limit, self.settings.levels)
        self.grids.append(fit(group, self.settings))

    def _column(self, j: int, grid: Grid) -> Tensor:
        """Quantise column j; the values that will be served, (R,) in units."""
        w = self.w[j]
        a, b = grid.a.to(w.dtype), grid.b.to(w.dtype)
        codes = ((w - b) / a.clamp(min=TINY_SCALE)).round_().clamp_(0, self.settings.levels)
        self.codes[j] = codes
        base = arithmetic.base(grid.a, grid.b, codes.float())  # exactly as the dequantiser
        served = self._served(base)
        if self.limit is None or self.outlier is None or self.delta is None:
            return served
        outlier = ((w - served) / self.d[j]).square_() > self.limit
        delta = to_f16(w - base)
        self.outlier[j] = outlier
        self.delta[j] = delta
        return torch.where(outlier, self._served(base + delta.float()), served)

    def _served(self, x: Tensor) -> Tensor:
        """Float32 in units, rounded as the weight it will be."""
        x = x * self.unit
        if self.weight_dtype == torch.float16:
            x = to_f16(x)
        return x.to(self.weight_dtype).to(self.w.dtype) / self.unit

    def result(self, dtype: str) -> Quantized:
        columns = len(self.w)
        index, value = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float16)
        if self.outlier is not None and self.delta is not None:
            row, column = self.outlier.T.nonzero(as_tuple=True)  # by row, then column
            index = (row * columns + column).cpu().numpy()
            value = self.delta[column, row].cpu().numpy()
        return Quantized(
            self.settings.bits,
            self.settings.group_size(columns),
            self.settings.run,
            self.settings.stat_bits,
            dtype,
            self.unit,
            self.codes.T.contiguous().cpu().numpy(),
            torch.stack([g.scale_codes for g in self.grids], dim=1).cpu().numpy(),
            torch.stack([g.zero_codes for g in self.grids], dim=1).cpu().numpy(),
            torch.stack([g.stats for g in self.grids], dim=1).cpu().numpy(),
            index,
            value,
            None,
        )
