"""The column loop over one block of columns: fit, round, keep outliers, push the error on.

Everything it reads and writes lies in one set of tensors, a `Block`, and nothing in it waits for the device
or depends on a value. So for a GPU the loop can be recorded once as a CUDA graph and replayed for every
other block of that shape (`captured.py`), without Python in between.

Everything is transposed, (columns, R): a column is contiguous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.codec.quantized import arithmetic_torch as arithmetic
from tersor.codec.quantized.dequantize_torch import to_f16
from tersor.quantize.grid import fit, without_outliers
from tersor.quantize.reference import TINY_SCALE
from tersor.quantize.settings import Settings


@dataclass(frozen=True)
class Grids:
    """Grids of G groups over R rows, as served and as stored."""

    a: Tensor  # (G, R) float32
    b: Tensor  # (G, R) float32
    scale_codes: Tensor  # (G, R) uint8
    zero_codes: Tensor  # (G, R) uint8
    stats: Tensor  # (G, K, 4) float16: scale step, scale min, zero step, zero min

    @staticmethod
    def empty(groups: int, rows: int, run: int, device: torch.device) -> Grids:
        """Room for `groups` of them; K = ceil(R / run)."""
        a, b = torch.empty(2, groups, rows, device=device)
        scale_codes, zero_codes = torch.empty(2, groups, rows, dtype=torch.uint8, device=device)
        stats = torch.empty(groups, -(-rows // run), 4, dtype=torch.float16, device=device)
        return Grids(a, b, scale_codes, zero_codes, stats)

    def only(self, group: int) -> Grids:
        """The grid of one group."""
        return Grids(*(x[group : group + 1] for x in vars(self).values()))

    def put(self, group: int, other: Grids) -> None:
        """Copy all of `other` to where `group` and those after it lie."""
        for mine, its in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[group : group + len(its)].copy_(its)


@dataclass(frozen=True)
class Block:
    """n columns of a matrix of R rows."""

    w: Tensor  # (n, R) in units, float type of the computation; consumed
    d: Tensor  # (n,) the diagonal of the factor
    upper: Tensor | None  # (n, n) the factor; None without feedback
    limit: Tensor | None  # () squared error over d^2 above which a weight is an outlier; None keeps none
    unit: Tensor  # ()
    grids: Grids  # of the groups that begin here; the one that all lies in when it began earlier
    codes: Tensor  # (n, R) uint8
    outlier: Tensor  # (n, R) bool; of no rows when none are kept
    delta: Tensor  # (n, R) float16, likewise
    errors: Tensor  # (n, R) over d


def new_block(n: int, rows: int, groups: int, like: Tensor, settings: Settings) -> Block:
    """Room for a block on the device and in the float type of `like`; valid, as yet meaningless, numbers."""

    def zeros(*shape: int, dtype: torch.dtype = like.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=like.device)

    sparse = math.isfinite(settings.tau)
    kept = rows if sparse else 0
    return Block(
        w=zeros(n, rows),
        d=zeros(n) + 1,
        upper=zeros(n, n) if settings.feedback else None,
        limit=zeros() if sparse else None,
        unit=zeros() + 1,
        grids=Grids.empty(groups, rows, settings.run, like.device),
        codes=zeros(n, rows, dtype=torch.uint8),
        outlier=zeros(n, kept, dtype=torch.bool),
        delta=zeros(n, kept, dtype=torch.float16),
        errors=zeros(n, rows),
    )


def fit_group(w: Tensor, d: Tensor, limit: Tensor | None, settings: Settings) -> Grids:
    """The grid of one group of columns `w` (g, R), as `Grids` of one."""
    if limit is not None:
        w = without_outliers(w, d, limit, settings.levels)
    return Grids(*(x[None] for x in vars(fit(w, settings)).values()))


def quantize_block(x: Block, group: int, settings: Settings, served: torch.dtype) -> None:
    """Quantise all columns of a block whose groups of `group` begin at its first column.

    If `group` is more than the block's columns, its grid must be there already.
    """
    n = len(x.w)
    for start in range(0, n, group):
        stop = min(start + group, n)
        if group <= n:
            x.grids.put(start // group, fit_group(x.w[start:stop], x.d[start:stop], x.limit, settings))
        a, b = (grid[start // group] for grid in (x.grids.a, x.grids.b))
        scale, offset = a.to(x.w.dtype).clamp(min=TINY_SCALE), b.to(x.w.dtype)
        for j in range(start, stop):
            codes = (x.w[j] - offset).div_(scale).round_().clamp_(0, settings.levels)
            x.codes[j] = codes
            base = arithmetic.base(a, b, codes.float())  # exactly as the dequantiser
            value = _served(base, x.unit, served)
            if x.limit is not None:
                value = _keep(x, j, base, value, served)
            x.errors[j] = (x.w[j] - value).div_(x.d[j])
            if x.upper is not None and j + 1 < n:
                x.w[j + 1 :].addcmul_(x.upper[j, j + 1 :, None], x.errors[j], value=-1)


def _keep(x: Block, j: int, base: Tensor, value: Tensor, served: torch.dtype) -> Tensor:
    """Column j's served values, those of outliers exact."""
    assert x.limit is not None
    torch.gt((x.w[j] - value).div_(x.d[j]).square_(), x.limit, out=x.outlier[j])
    delta = to_f16(x.w[j] - base)
    x.delta[j] = delta
    return torch.where(x.outlier[j], _served(base + delta.float(), x.unit, served), value)


def _served(x: Tensor, unit: Tensor, served: torch.dtype) -> Tensor:
    """Float32 in units, rounded as the weight it will be; in units again, in the type of `unit`."""
    x = x * unit.float()
    if served == torch.float16:
        x = to_f16(x)
    return x.to(served).to(unit.dtype) / unit
