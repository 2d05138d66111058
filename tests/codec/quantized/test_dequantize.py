"""The dequantisers: the formulas of FORMAT.md section 6 one weight at a time, then all implementations alike."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from exact import bfloat16, binary16, fraction
from matrices import VARIANTS, grid_matrix, integer_matrix
from tersor.codec.quantized.dequantize import dequantize, dequantize_rows, weight_sha256
from tersor.codec.quantized.matrix import Quantized
from tersor.codec.quantized.rounding import round_weight, to_bytes

EVERY = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def by_definition(q: Quantized) -> np.ndarray:
    """FORMAT.md section 6, slowly."""
    rows, columns = q.shape
    f = np.float32
    kept = dict(zip(q.outlier_index.tolist(), q.outlier_value.astype(f), strict=True))
    out = np.zeros(q.shape, f)
    for r in range(rows):
        for j in range(columns):
            i = j // q.group
            scale_step, scale_min, zero_step, zero_min = map(fraction, q.stats[r // q.run, i])
            s = binary16(scale_min + scale_step * int(q.scale_codes[r, i]))
            z = binary16(zero_min + zero_step * int(q.zero_codes[r, i]))
            a = bfloat16(s)
            w = f(float(bfloat16(a * int(q.codes[r, j]) + bfloat16(-a * z))))
            if r * columns + j in kept:
                w = w + kept[r * columns + j]
            out[r, j if q.order is None else q.order[j]] = w * f(q.unit)
    return round_weight(out, q.dtype)


@EVERY
def test_numpy_is_the_definition(options: dict[str, object]) -> None:
    q = grid_matrix(**options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(dequantize(q).view(np.uint32), by_definition(q).view(np.uint32))
    rows = q.shape[0]
    cut = rows // 3, rows - rows // 4
    np.testing.assert_array_equal(dequantize_rows(q, *cut), dequantize(q)[slice(*cut)])


@EVERY
def test_torch_is_numpy_bit_for_bit(options: dict[str, object]) -> None:
    torch = pytest.importorskip("torch")
    from tersor.codec.quantized import dequantize_torch

    q = grid_matrix(**options)  # type: ignore[arg-type]
    weight = dequantize_torch.dequantize(q)
    assert weight.dtype == {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[q.dtype]
    stored = weight.contiguous().view(torch.uint8).numpy()
    assert hashlib.sha256(stored.tobytes()).hexdigest() == weight_sha256(q)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_integers(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from tersor.codec.quantized import dequantize_torch

    q = integer_matrix(dtype=dtype)
    exact = q.codes.astype(np.float64) * q.steps
    np.testing.assert_array_equal(dequantize(q), round_weight(exact.astype(np.float32), dtype))
    np.testing.assert_array_equal(exact.astype(np.float32), exact)
    stored = dequantize_torch.dequantize(q).view(torch.uint8).numpy()
    assert hashlib.sha256(stored.tobytes()).hexdigest() == weight_sha256(q)


def test_bytes_are_those_of_the_dtype() -> None:
    x = np.array([1.0, -2.5, 0.0], np.float32)
    assert to_bytes(x, "BF16").tobytes() == bytes.fromhex("803f20c00000")
    assert to_bytes(x, "F16").tobytes() == x.astype("<f2").tobytes()
    assert to_bytes(x, "F32").tobytes() == x.astype("<f4").tobytes()
