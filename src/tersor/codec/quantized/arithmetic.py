"""The arithmetic of quantised weights in NumPy: FORMAT.md section 6, number by number; the truth.

    s = RN16(scale_min + scale_step * scale_code)        z = RN16(zero_min + zero_step * zero_code)
    a = RNbf(s)                                          b = RNbf(-(a * z))
    base = RNbf(a * code + b)

RN16 and RNbf round an *exact* value to the nearest binary16 or bfloat16, ties to even. So each line is one
fused multiply-add of the type it ends in, which GPUs have for two numbers at a time: a product kernel gets
the very weights that were evaluated, in half an instruction each. (s and z in float32, and
s * (code - z), would cost a kernel four.)

Every product here has at most 19 significant bits and is exact in float32; a sum need not be, and rounding
it to 24 bits first and to 8 or 11 after is rounding twice, wrong by one unit now and then. Rounding to
*odd* first (cut off, and set the last bit if anything was cut; Boldo and Melquiond, 2008) keeps what the
second rounding must know, as 24 >= 11 + 2. What was cut is the error of the sum, which six additions give
exactly (TwoSum; Knuth). So no wider type is needed, and a GPU without float64 computes the same bits.
`arithmetic_torch.py` is this file in torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tersor.codec.quantized.rounding import F16, F32, round_bf16


def odd_sum(x: F32, y: F32) -> F32:
    """x + y in float32, rounded to odd: cut towards zero, the last bit set unless that was exact."""
    total = np.asarray(x + y, np.float32)
    part = total - x
    error = (x - (total - part)) + (y - part)
    inexact = error != 0
    beyond = inexact & ((error < 0) != (total < 0))  # rounded away from zero
    bits: npt.NDArray[np.int32] = (total.view(np.int32) - beyond.astype(np.int32)) | inexact
    return bits.view(np.float32)


def statistic(minimum: F16, step: F16, code: npt.NDArray[np.uint8]) -> F16:
    """Scales or zeros: minimum + step * code, rounded once."""
    product = step.astype(np.float32) * code.astype(np.float32)
    return odd_sum(minimum.astype(np.float32), product).astype(np.float16)


def grid(scale: F16, zero: F16) -> tuple[F32, F32]:
    """Factor a and offset b of groups, values of bfloat16 held as float32."""
    a = round_bf16(scale.astype(np.float32))
    return a, round_bf16(-(a * zero.astype(np.float32)))


def base(a: F32, b: F32, code: npt.NDArray[np.uint8]) -> F32:
    """a * code + b, rounded once to bfloat16, held as float32."""
    return round_bf16(odd_sum(a * code.astype(np.float32), b))


def bases(a: F32, b: F32, codes: npt.NDArray[np.uint8], group: int) -> F32:
    """Bases (R, C) of codes (R, C) on grids a, b (R, G) of `group` columns each."""
    wide_a, wide_b = (np.repeat(x, group, axis=1)[:, : codes.shape[1]] for x in (a, b))
    return base(wide_a, wide_b, codes)
