"""SpQR at full speed, in torch, on the CPU or a GPU; `reference.py` says what it computes.

The matrix is held transposed, (C, R), so that a column is contiguous. Columns are worked in blocks of
about 128 (`columns.py`): inside a block every column's error goes to the block's later columns at once; the
rest of the matrix gets the whole block's errors in one matrix product. Nothing waits for the device between
the first column and the last, and on a GPU a block is one replay of a CUDA graph (`captured.py`).

In float64 the result equals the reference's, number by number. In float32, the default, a weight that
lies within rounding of the middle between two codes may fall to the other side, and the feedback
carries that small difference on; the layer's error stays the same to a part in ten thousand.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tersor.codec.quantized.dequantize import inverse
from tersor.codec.quantized.matrix import Quantized
from tersor.format.errors import UnknownDtype, UsageError
from tersor.quantize.captured import captured
from tersor.quantize.columns import Block, Grids, fit_group, new_block, quantize_block
from tersor.quantize.factor import inverse_factor
from tersor.quantize.order import column_order
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
    done = _Columns(w, upper, settings, served, unit).run()
    if settings.act_order == "groups":
        done.restore(inverse(order))
        order = np.arange(columns, dtype=np.int32)
    return done.result(dtype, None if np.array_equal(order, np.arange(columns)) else order)


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
    """The column loop over one matrix `w` (C, R) in units, which it consumes, block by block."""

    def __init__(
        self, w: Tensor, upper: Tensor | None, settings: Settings, served: torch.dtype, unit: float
    ) -> None:
        self.w, self.settings, self.served, self.unit = w, settings, served, unit
        self.upper = upper if settings.feedback else None
        self.d = torch.ones_like(w[:, 0]) if upper is None else upper.diagonal()
        self.sparse = math.isfinite(settings.tau)
        sensitivity = w.var(dim=1, unbiased=False) / self.d.square()
        self.limit = settings.tau * sensitivity.mean() if self.sparse else None
        columns, rows = w.shape
        self.group = settings.group_size(columns)
        self.grids = Grids.empty(-(-columns // self.group), rows, settings.run, w.device)
        self.codes = torch.empty_like(w, dtype=torch.uint8)
        kept = rows if self.sparse else 0
        self.outlier = w.new_empty(columns, kept, dtype=torch.bool)
        self.delta = w.new_empty(columns, kept, dtype=torch.float16)

    def run(self) -> _Columns:
        columns, group = len(self.w), self.group
        # a block is whole groups, or a group is whole blocks: a grid is fitted where no update is owed
        size = BLOCK // group * group if group <= BLOCK else BLOCK if group % BLOCK == 0 else group
        block, graph = None, None
        for start in range(0, columns, size):
            stop = min(start + size, columns)
            if block is None or stop - start < size:
                block, graph = self._room(stop - start, whole=stop - start == size < columns)
            self._fill(block, start, stop)
            if graph is None:
                quantize_block(block, group, self.settings, self.served)
            else:
                graph.replay()
            self._take(block, start, stop)
            if self.upper is not None and stop < columns:
                self.w[stop:] -= self.upper[start:stop, stop:].T @ block.errors
        return self

    def _room(self, n: int, whole: bool) -> tuple[Block, torch.cuda.CUDAGraph | None]:
        """A block of n columns; on a GPU, if it is one of several `whole` ones, with its graph."""
        rows = self.w.shape[1]
        if whole and self.w.is_cuda:
            return captured(n, rows, self.group, self.w, self.settings, self.served)
        return new_block(n, rows, -(-n // self.group), self.w, self.settings), None

    def _fill(self, x: Block, start: int, stop: int) -> None:
        """Give a block its columns, and the grid of a group that is larger than it."""
        x.w.copy_(self.w[start:stop])
        x.d.copy_(self.d[start:stop])
        x.unit.fill_(self.unit)
        if x.upper is not None and self.upper is not None:
            x.upper.copy_(self.upper[start:stop, start:stop])
        if x.limit is not None and self.limit is not None:
            x.limit.copy_(self.limit)
        if self.group > stop - start:
            if start % self.group == 0:
                span = slice(start, start + self.group)
                self.grids.put(
                    start // self.group, fit_group(self.w[span], self.d[span], self.limit, self.settings)
                )
            x.grids.put(0, self.grids.only(start // self.group))

    def _take(self, x: Block, start: int, stop: int) -> None:
        """Take a block's results."""
        self.codes[start:stop] = x.codes
        self.outlier[start:stop] = x.outlier
        self.delta[start:stop] = x.delta
        if self.group <= stop - start:
            self.grids.put(start // self.group, x.grids)

    def restore(self, places: npt.NDArray[np.int64]) -> None:
        """Put column `places[j]` at j, where groups stay together."""
        columns = torch.from_numpy(places).to(self.codes.device)
        groups = columns[:: self.group] // self.group
        self.codes, self.outlier, self.delta = (x[columns] for x in (self.codes, self.outlier, self.delta))
        self.grids = Grids(*(x[groups] for x in vars(self.grids).values()))

    def result(self, dtype: str, order: npt.NDArray[np.int32] | None) -> Quantized:
        """What is stored, in host memory."""
        columns = len(self.w)
        index, value = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float16)
        if self.sparse:
            row, column = self.outlier.T.nonzero(as_tuple=True)  # by row, then column
            index = (row * columns + column).cpu().numpy()
            value = self.delta[column, row].cpu().numpy()
        grids = self.grids
        return Quantized(
            self.settings.bits,
            self.group,
            self.settings.run,
            self.settings.stat_bits,
            dtype,
            self.unit,
            self.codes.T.contiguous().cpu().numpy(),
            grids.scale_codes.T.contiguous().cpu().numpy(),
            grids.zero_codes.T.contiguous().cpu().numpy(),
            grids.stats.transpose(0, 1).contiguous().cpu().numpy(),
            index,
            value,
            order,
        )
