"""How small: bits per weight against the entropy, everything counted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from crafting import gaussian_bytes, read_tensors
from tersor.codec import encode, histogram
from tersor.format.dtypes import RAW_BYTES
from tersor.format.layout import Grid


def bound(data: np.ndarray, dtype: str) -> float:
    """Shannon's bound in bits per weight: symbols at their entropy, the raw bytes as they are."""
    counts = histogram(data, dtype)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 8 * RAW_BYTES[dtype]


def test_a_gaussian_matrix_takes_at_most_10_80_bits() -> None:
    data = gaussian_bytes((4096, 4096))
    packed = encode(data, "BF16", (4096, 4096))
    assert packed.bits_per_weight <= 10.80
    assert packed.bits_per_weight <= bound(data, "BF16") + 0.25


def test_the_demo_model_is_within_a_quarter_bit_of_its_entropy(demo_model: Path) -> None:
    """Every matrix whose tiles are mostly whole (128 columns or more, 64 rows or more); the book's 2048 bits are
    left out, since on 16384 weights they alone are an eighth of a bit."""
    measured = 0
    for name, t in read_tensors(demo_model / "model.safetensors").items():
        grid = Grid.of(t.shape)
        if len(t.shape) < 2 or math.prod(t.shape) < 1 << 14:
            continue
        assert grid.cols >= 128, name
        data = np.frombuffer(t.data, np.uint8)
        packed = encode(data, t.dtype, t.shape)
        bits = packed.bits_per_weight - 8 * 256 / packed.elements
        assert bits <= bound(data, t.dtype) + 0.25, name
        measured += 1
    assert measured >= 5
