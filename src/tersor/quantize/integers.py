"""Entropy-coded integers: the meeting of SpQR's error feedback and a lossless coder.

A weight becomes `code * step`, the code an unbounded integer (in practice a signed byte) and the step one
number per *column*. There are no groups, no zeros, no ranges, no outliers: a large weight is simply a
long Huffman code. What a code costs is decided afterwards by how often it occurs, so wide groups do not
pay for their extremes and the width is any real number.

The step of column j is c * d_j with d_j = U_jj from the inverse Hessian's factor (`factor.py`). This is
the classic result on bit allocation: the layer's loss is sum_j e_j^2 / d_j^2, an entropy-coded uniform
quantiser spends h_j - log2(step_j) bits, and the sum of e_j^2 / d_j^2 at a given total is least when
every term is equal, so step_j must be proportional to d_j. Rows need no step of their own, since the
loss weighs them alike. The one number c sets the rate.

The price: no fixed-width code to unpack, so every use decodes, exactly as with lossless weights (and with
the same decoder: an 8-bit symbol, no raw bits). Folding the steps into the activations leaves integers.

A code is a signed byte, so a step is raised where needed to keep the column's largest weight within 127.
`step * code` has 8 + 7 significant bits: exact in float32, rounded once to the weight's type. Every
implementation is bit-exact without further care.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.rounding import F32, round_bf16, round_weight
from tersor.format.errors import UsageError

MAX_CODE = 127
SAMPLE = 1 << 20  # weights that stand for all when the entropy is estimated: good to 0.01 bits
LEAST_STEP = 2.0**-126  # the smallest normal number of bfloat16


@dataclass(frozen=True)
class IntegerSettings:
    """How one matrix becomes entropy-coded integers. Raises `UsageError` outside the ranges."""

    bits: float = 4.0
    """Entropy of the codes aimed at, in bits per weight, 1 to 6.5: a byte holds no finer codes."""
    percdamp: float = 0.1
    """Damping of the Hessian, in units of its mean diagonal."""
    act_order: bool = True
    """Quantise columns by falling Hessian. They are stored in their original order all the same."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 6.5:
            raise UsageError(f"entropy-coded integers take 1 to 6.5 bits per weight, not {self.bits}")
        if not 0 <= self.percdamp < float("inf"):
            raise UsageError(f"percdamp must be finite and not negative, not {self.percdamp}")


def column_steps(
    sample: npt.NDArray[np.float64], largest: npt.NDArray[np.float64], d: npt.NDArray[np.float64], bits: float
) -> F32:
    """Steps (C,) in proportion to d (C,) under which the codes have an entropy of `bits`.

    By bisection over the one factor, on some rows of the matrix (`sample_rows`) and the largest
    magnitude of each column. The error feedback to come changes the entropy very little.
    """
    low, high = -64.0, 0.0  # log2 of the factor, relative to one that leaves hardly any code
    top = 4 * float(np.max(largest / d, initial=0.0)) or 1.0
    for _ in range(32):
        middle = (low + high) / 2
        if entropy(_codes(sample, _steps(top * 2.0**middle, d, largest))) > bits:
            low = middle
        else:
            high = middle
    return _steps(top * 2.0**high, d, largest)


def sample_rows(rows: int, columns: int) -> slice:
    """Evenly spaced rows, about `SAMPLE` weights of them."""
    return slice(None, None, max(1, rows * columns // SAMPLE))


def _steps(factor: float, d: npt.NDArray[np.float64], largest: npt.NDArray[np.float64]) -> F32:
    fine = np.maximum(np.maximum(factor * d, largest / MAX_CODE), LEAST_STEP)
    return round_bf16(np.minimum(fine, 2.0**126).astype(np.float32))


def _codes(w: npt.NDArray[np.float64], steps: F32) -> npt.NDArray[np.int8]:
    return np.clip(np.rint(w / steps), -MAX_CODE, MAX_CODE).astype(np.int8)


def entropy(codes: npt.NDArray[np.int8]) -> float:
    """First-order entropy in bits per code."""
    counts = np.bincount(codes.reshape(-1).view(np.uint8), minlength=256)
    share = counts[counts > 0] / max(codes.size, 1)
    return float(-(share * np.log2(share)).sum())


def reference(
    weight: F32, h: npt.NDArray[np.float64], settings: IntegerSettings, dtype: str = "BF16"
) -> Integers:
    """The plain quantiser, in NumPy and float64; `integers_torch.py` must equal it."""
    from tersor.quantize.reference import inverse_factor

    columns = weight.shape[1]
    order = np.argsort(-np.diag(h), kind="stable") if settings.act_order else np.arange(columns)
    w = weight.astype(np.float64)[:, order]
    upper = inverse_factor(h[np.ix_(order, order)], settings.percdamp)
    d = np.diag(upper)
    sample = w[sample_rows(*w.shape)]
    steps = column_steps(sample, np.abs(w).max(axis=0, initial=0.0), d, settings.bits)
    codes = np.zeros(weight.shape, dtype=np.int8)
    for j in range(columns):
        code = _codes(w[:, j : j + 1], steps[j : j + 1])
        served = round_weight(code.astype(np.float32) * steps[j], dtype)[:, 0]
        w[:, j + 1 :] -= np.outer((w[:, j] - served) / d[j], upper[j, j + 1 :])
        codes[:, order[j]] = code[:, 0]
    back = np.empty_like(order)
    back[order] = np.arange(columns)
    return Integers(dtype, codes, steps[back])
