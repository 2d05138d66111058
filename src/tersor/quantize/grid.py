"""Two-level grids and leave-one-out, vectorised in torch over all rows of a matrix.

Everything here is transposed: a group is (g, R), one *input* a line, so that each step of the column
loop reads contiguous memory. No operation waits for the device or takes a number from the host's memory
(`torch.where` with a Python number does), so all of it can be recorded in a CUDA graph.

Leave-one-out looks expensive: a group of g weights asks for g + 1 fits. But a min-max grid changes only
when its extreme leaves. For every other weight the rest is rounded exactly as before, and what keeping
it would save is its own squared error. So three fits do for any g: all, all but the smallest, all but
the largest (and when a group holds its extreme twice, the fit without one of them is the same again).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.codec.quantized import arithmetic_torch as arithmetic
from tersor.codec.quantized.dequantize_torch import to_f16
from tersor.quantize.reference import LARGEST_ZERO, TINY_SCALE
from tersor.quantize.settings import Settings


def first_level(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and real zero of grids from `low` to `high`; of flat groups as in the reference."""
    largest, half = torch.where(low.abs() > high.abs(), low, high), (levels + 1) / 2
    flat = (high - low) * LARGEST_ZERO <= levels * largest.abs()
    scale = torch.where(flat, largest.abs() / half, (high - low) / levels)
    exact = (largest < 0).to(low.dtype).add_(1).mul_(half / 2)  # half for negative ones, else half of that
    zero = torch.where(flat, exact, -low / scale)
    return scale, zero


def rounding_error(g: Tensor, d: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """Squared error over d^2 of every weight of a group (g, R) on the grids (R,) from low to high."""
    scale, zero = first_level(low, high, levels)
    codes = (g / scale.clamp(min=TINY_SCALE) + zero).round_().clamp_(0, levels)
    return codes.sub_(zero).mul_(scale).sub_(g).div_(d[:, None]).square_()


def leave_one_out(g: Tensor, d: Tensor, levels: int) -> Tensor:
    """What keeping weight k exact would save in squared error: (g, R) for a group (g, R), g >= 2."""
    low, lowest = g.min(dim=0)
    high, highest = g.max(dim=0)
    error = rounding_error(g, d, low, high, levels)
    total = error.sum(dim=0)
    inf = torch.inf
    next_low = g.scatter(0, lowest[None], inf).amin(dim=0)
    next_high = g.scatter(0, highest[None], -inf).amax(dim=0)
    saved = error.clone()
    for index, bottom, top in ((lowest, next_low, high), (highest, low, next_high)):
        rest = rounding_error(g, d, bottom, top, levels).scatter_(0, index[None], 0.0).sum(dim=0)
        saved.scatter_(0, index[None], (total - rest)[None])
    return saved


def without_outliers(g: Tensor, d: Tensor, limit: Tensor, levels: int) -> Tensor:
    """The group (g, R) with each outlier replaced by the mean of its row's other weights."""
    if len(g) < 2:
        return g
    good = leave_one_out(g, d, levels) <= limit
    count = good.sum(dim=0)
    mean = g.masked_fill(~good, 0.0).sum(dim=0) / count.clamp(min=1)
    return torch.where(good | (count == 0), g, mean)


@dataclass(frozen=True)
class Grid:
    """The grids of one group for all rows, as stored and as served."""

    a: Tensor  # (R,) float32
    b: Tensor  # (R,) float32
    scale_codes: Tensor  # (R,) uint8
    zero_codes: Tensor  # (R,) uint8
    stats: Tensor  # (K, 4) float16: scale step, scale min, zero step, zero min


def fit(g: Tensor, settings: Settings) -> Grid:
    """Fit both levels to a group (g, R)."""
    scale, zero = first_level(g.amin(dim=0), g.amax(dim=0), settings.levels)
    scale, scale_codes, scale_step, scale_min = second_level(scale, settings)
    zero, zero_codes, zero_step, zero_min = second_level(zero, settings)
    stats = torch.stack([scale_step, scale_min, zero_step, zero_min], dim=1)
    return Grid(*arithmetic.grid(scale, zero), scale_codes, zero_codes, stats)


def second_level(x: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantise scales or zeros (R,) run by run: as served, codes, and each run's step and minimum (K,)."""
    rows, run, top = len(x), settings.run, (1 << settings.stat_bits) - 1
    padded = torch.cat([x, x[-1:].expand(-rows % run)]).view(-1, run)  # repeats change no extreme
    low, high = padded.aminmax(dim=1)
    minimum = to_f16(low)
    step = to_f16((high - low) / top) if top else torch.zeros_like(minimum)
    wide = step.to(x.dtype)[:, None]
    codes = ((padded - minimum.to(x.dtype)[:, None]) / wide).round().clamp(0, top)
    codes.masked_fill_(~(wide > 0), 0.0)
    served = arithmetic.statistic(minimum.float()[:, None], step.float()[:, None], codes.float())
    return served.view(-1)[:rows], codes.view(-1)[:rows].to(torch.uint8), step, minimum
