"""Every bit pattern is an ordinary value: NaN payloads, -0, denormals and infinities come back as they were."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from crafting import HUFFMAN_DTYPES
from tersor.codec.split import join, split

ALL_16 = np.arange(1 << 16, dtype=np.uint16)
ALL_8 = np.arange(1 << 8, dtype=np.uint8)
F32_SPECIAL = np.array(
    [
        0x00000000,  # 0
        0x80000000,  # -0
        0x00000001,  # smallest denormal
        0x807FFFFF,  # largest denormal, negative
        0x00800000,  # smallest normal
        0x7F7FFFFF,  # largest
        0x7F800000,  # infinity
        0xFF800000,  # -infinity
        0x7F800001,  # signalling NaN
        0x7FC00000,  # quiet NaN
        0xFFFFFFFF,  # NaN, every payload bit
        0x7FABCDEF,  # NaN with a payload
        0x3F800000,  # 1
    ],
    np.uint32,
)
# every exponent with every sign, and mantissas of one bit each
F32_GRID = (
    (np.arange(512, dtype=np.uint32) << 23)[:, None]
    | np.array([0, 0x7FFFFF, *(1 << b for b in range(23))], np.uint32)
).reshape(-1)

CASES = [
    ("BF16", ALL_16, (256, 256)),
    ("BF16", ALL_16[::-1], (65536,)),
    ("F16", ALL_16, (256, 256)),
    ("F16", np.random.default_rng(0).permutation(ALL_16), (64, 1024)),
    ("F8_E4M3", ALL_8, (256,)),
    ("F8_E5M2", ALL_8, (256,)),
    ("F8_E4M3", np.tile(ALL_8, 33), (33, 256)),
    ("F8_E5M2", np.tile(ALL_8[::-1], 33), (33, 256)),
    ("F32", F32_SPECIAL, (13,)),
    ("F32", F32_GRID, (512, 25)),
]


@pytest.mark.parametrize(
    ("dtype", "values", "shape"), CASES, ids=lambda v: str(v) if not hasattr(v, "size") else ""
)
def test_every_pattern_comes_back(
    codec: ModuleType, dtype: str, values: NDArray[np.unsignedinteger], shape: tuple[int, ...]
) -> None:
    data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    assert codec.decode(codec.encode(data, dtype, shape)).tobytes() == data.tobytes()


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
def test_split_and_join_are_inverse_and_keep_every_bit_once(dtype: str) -> None:
    """Splitting is a bijection: flipping one bit of an element changes exactly one bit of symbol or raw bytes."""
    size = HUFFMAN_DTYPES[dtype]
    rng = np.random.default_rng(3)
    element = rng.integers(0, 256, size, np.uint8)
    symbol, raw = split(element, dtype)
    assert raw.shape == (size - 1, 1)
    for bit in range(8 * size):
        flipped = element.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        other_symbol, other_raw = split(flipped, dtype)
        changed = int(np.bitwise_count(symbol ^ other_symbol).sum() + np.bitwise_count(raw ^ other_raw).sum())
        assert changed == 1
        assert join(other_symbol, other_raw, dtype).tobytes() == flipped.tobytes()


def test_symbols_are_the_exponents() -> None:
    """Against NumPy's own idea of an exponent."""
    values = np.array([1.0, -2.0, 0.75, 1e-20, -3e30], np.float32)
    exponents = np.frexp(values)[1] + 126
    assert split(values.view(np.uint8), "F32")[0].tolist() == exponents.tolist()
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert split(bf16.view(np.uint8), "BF16")[0].tolist() == exponents.tolist()
