"""SpQR, slow and plain: the truth that the fast quantiser is tested against.

One matrix, one column at a time, all arithmetic in float64, every update applied at once. It
follows arXiv 2306.03078 (and GPTQ, arXiv 2210.17323, whose core it is), with these decisions where
the paper or its code leave a choice:

* Second-level numbers, outliers and the weights themselves are rounded to their stored types before
  they are used, so the error that is fed back is the error that will be served.
* An outlier is stored as weight minus dequantised base, so adding it is replacing the weight.
* A flat group, one value c over and over or so nearly that its zero would not fit binary16, gets steps
  of |c| / 2^(b-1) and a zero at a power of two, which hold c exactly. (The paper's [-1, 1] turns rows of
  zeros into rows of +-1/(2^b - 1).)
* An input that calibration never saw is rounded as it is. (GPTQ sets its weights to zero; but a rare
  token or an expert that got none would then lose them for good.)
* The variance in the outlier threshold is that of the population, so a single row works too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tersor.codec.quantized import arithmetic
from tersor.codec.quantized.matrix import Quantized
from tersor.codec.quantized.rounding import F16, F32, round_weight, to_f16
from tersor.quantize.order import column_order, settle
from tersor.quantize.settings import Settings

F64 = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]
TINY_SCALE = (
    1e-9  # of the matrix's unit: below it a group is one point, and dividing by its scale is not safe
)
LARGEST_ZERO = 2.0**14  # a quarter of what binary16 holds: a second level on top of it still fits


def hessian(inputs: F32) -> F64:
    """H = (2/N) sum x x^T over N inputs, (N, C) -> (C, C)."""
    x = inputs.astype(np.float64)
    h: F64 = (2.0 / max(len(x), 1)) * (x.T @ x)
    return h


def quantize(weight: F32, h: F64 | None, settings: Settings, dtype: str = "BF16") -> Quantized:
    """Quantise `weight` (R, C) under the Hessian `h` (C, C); None stands for the identity.

    The values of `weight` must be representable in `dtype` and finite.
    """
    rows, columns = weight.shape
    h = np.eye(columns) if h is None else h
    group, top = settings.group_size(columns), settings.levels
    unit = unit_of(weight)
    order = column_order(np.diag(h), settings)
    w = weight.astype(np.float64)[:, order] / unit
    upper = inverse_factor(h[np.ix_(order, order)], settings.percdamp)
    d = np.diag(upper)
    limit = settings.tau * float(np.mean(np.var(w, axis=0) / d**2))

    codes = np.zeros((rows, columns), dtype=np.uint8)
    scale_codes, zero_codes, stats = [], [], []
    index: list[int] = []
    value: list[np.float16] = []
    for j in range(columns):
        if j % group == 0:
            span = slice(j, min(j + group, columns))
            cleaned = without_outliers(w[:, span], d[span], limit, settings)
            scale, zero, scale_code, zero_code, second = fit_two_levels(cleaned, settings)
            a, b = arithmetic.grid(scale, zero)
            scale_codes.append(scale_code)
            zero_codes.append(zero_code)
            stats.append(second)
        q = np.clip(np.rint((w[:, j] - b) / np.maximum(a, TINY_SCALE)), 0, top)
        base = arithmetic.base(a, b, q.astype(np.uint8))  # exactly as the dequantiser
        served = round_weight(base * np.float32(unit), dtype) / unit
        outlier = ((w[:, j] - served) / d[j]) ** 2 > limit
        delta = to_f16(w[:, j] - base)
        kept = round_weight((base + delta.astype(np.float32)) * np.float32(unit), dtype) / unit
        codes[:, j] = q
        for r in np.flatnonzero(outlier):
            index.append(int(r) * columns + j)
            value.append(delta[r])
        if settings.feedback:
            error = (w[:, j] - np.where(outlier, kept, served)) / d[j]
            w[:, j + 1 :] -= np.outer(error, upper[j, j + 1 :])

    rising = np.argsort(np.array(index, dtype=np.int64))
    result = Quantized(
        settings.bits,
        group,
        settings.run,
        settings.stat_bits,
        dtype,
        unit,
        codes,
        np.stack(scale_codes, axis=1),
        np.stack(zero_codes, axis=1),
        np.stack(stats, axis=1),
        np.array(index, dtype=np.int64)[rising],
        np.array(value, dtype=np.float16)[rising],
        None,
    )
    return settle(result, order, settings.act_order)


def unit_of(weight: F32) -> float:
    """The power of two that brings the largest weight into [1, 2); 1 when all are zero."""
    largest = float(np.max(np.abs(weight), initial=0.0))
    return float(np.ldexp(1.0, int(np.frexp(largest)[1]) - 1)) if largest > 0 else 1.0


def inverse_factor(h: F64, percdamp: float) -> F64:
    """The upper triangular U with (H + damping)^-1 = U^T U."""
    diagonal = np.diag(h).copy()
    mean = float(diagonal.mean()) or 1.0
    damped = diagonal + percdamp * mean
    damped[damped == 0] = mean  # an unseen input, and no damping: independent of all others
    h = h.copy()
    np.fill_diagonal(h, damped)
    return np.linalg.cholesky(np.linalg.inv(h)).T


def round_group(g: F64, levels: int) -> F64:
    """First-level rounding of each row of a group on its own minimum and maximum."""
    scale, zero = first_level(g, levels)
    codes = np.clip(np.rint(g / np.maximum(scale, TINY_SCALE)[:, None] + zero[:, None]), 0, levels)
    rounded: F64 = scale[:, None] * (codes - zero[:, None])
    return rounded


def first_level(g: F64, levels: int) -> tuple[F64, F64]:
    """Scale and real zero of each row of a group, from its extremes."""
    low, high = g.min(axis=1), g.max(axis=1)
    largest, half = np.where(np.abs(low) > np.abs(high), low, high), (levels + 1) / 2
    flat = (high - low) * LARGEST_ZERO <= levels * np.abs(largest)
    scale = np.where(flat, np.abs(largest) / half, (high - low) / levels)
    zero = np.where(largest < 0, half, half / 2)
    np.divide(-low, scale, out=zero, where=~flat)
    return scale, zero


def leave_one_out(g: F64, d: F64, levels: int) -> F64:
    """What keeping weight k exact would save in squared error, for every weight of a group (R, g)."""
    everything = (((round_group(g, levels) - g) / d) ** 2).sum(axis=1)
    saved = np.zeros_like(g)
    for k in range(g.shape[1]):
        rest = np.delete(g, k, axis=1)
        left = (((round_group(rest, levels) - rest) / np.delete(d, k)) ** 2).sum(axis=1)
        saved[:, k] = everything - left
    return saved


def without_outliers(g: F64, d: F64, limit: float, settings: Settings) -> F64:
    """The group with each outlier replaced by the mean of its row's other weights."""
    if not np.isfinite(limit) or g.shape[1] < 2:
        return g
    bad = leave_one_out(g, d, settings.levels) > limit
    g = g.copy()
    for r in range(len(g)):
        if bad[r].any() and not bad[r].all():
            g[r, bad[r]] = g[r, ~bad[r]].mean()
    return g


def fit_two_levels(g: F64, settings: Settings) -> tuple[F16, F16, Codes, Codes, F16]:
    """Scale and zero per row as they will be served (R,), their codes (R,), and second level (K, 4)."""
    scale, zero = first_level(g, settings.levels)
    served = np.zeros((2, len(g)), dtype=np.float16)
    codes = np.zeros((2, len(g)), dtype=np.uint8)
    stats = []
    for start in range(0, len(g), settings.run):
        run = slice(start, start + settings.run)
        second: list[float] = []
        for which, x in enumerate((scale, zero)):
            step, low = second_level(x[run], settings.stat_bits)
            minimum, size = np.full((2, 1), [[low], [step]], np.float16)
            if step > 0:
                code = np.rint((x[run] - low) / step)
                codes[which, run] = np.clip(code, 0, (1 << settings.stat_bits) - 1)
            served[which, run] = arithmetic.statistic(minimum, size, codes[which, run])
            second += [step, low]
        stats.append(second)
    return served[0], served[1], codes[0], codes[1], np.array(stats, dtype=np.float16)


def second_level(x: F64, bits: int) -> tuple[float, float]:
    """Step and minimum, as stored, of the grid for one run of scales or zeros; no grid has step 0."""
    low, high = float(x.min()), float(x.max())
    step = (high - low) / ((1 << bits) - 1) if bits else 0.0
    return float(to_f16(np.array(step))), float(to_f16(np.array(low)))
