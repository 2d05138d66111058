"""`arithmetic.bases` by numba, on all threads: ten times as fast as NumPy, the same bits.

Two loops over a row, each of which LLVM turns into vector instructions: sums and their errors, then the
rounding, on the sums' bit patterns. Nothing is reassociated or fused, since fast-math is off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tersor.codec.compiled import compiled
from tersor.codec.quantized.rounding import F32
from tersor.codec.threads import each

_PIECE = 1 << 18  # weights a thread works at a time


def bases(a: F32, b: F32, codes: npt.NDArray[np.uint8], group: int) -> F32:
    """Bases (R, C) of codes (R, C) on the grids a, b (R, G)."""
    rows, columns = codes.shape
    out = np.empty((rows, columns), np.float32)
    bits = out.view(np.uint32)
    step = max(1, _PIECE // max(columns, 1))

    def work(piece: int) -> None:
        some = slice(piece * step, (piece + 1) * step)
        _bases(codes[some], a[some], b[some], group, out[some], bits[some])

    each(work, range(-(-rows // step)))
    return out


@compiled
def _bases(codes, a, b, group, out, bits):  # type: ignore[no-untyped-def]
    rows, columns = codes.shape
    factor, offset = np.empty(columns, np.float32), np.empty(columns, np.float32)
    error = np.empty(columns, np.float32)
    e = error.view(np.uint32)
    for r in range(rows):
        for i in range(a.shape[1]):
            factor[i * group : (i + 1) * group] = a[r, i]
            offset[i * group : (i + 1) * group] = b[r, i]
        c, sums, v = codes[r], out[r], bits[r]
        for j in range(columns):
            product = factor[j] * np.float32(c[j])
            total = product + offset[j]
            part = total - product
            error[j] = (product - (total - part)) + (offset[j] - part)
            sums[j] = total
        for j in range(columns):
            inexact = np.uint32((e[j] & np.uint32(0x7FFFFFFF)) != 0)
            odd = (v[j] - (inexact & ((e[j] ^ v[j]) >> np.uint32(31)))) | inexact
            v[j] = (odd + np.uint32(0x7FFF) + (odd >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
