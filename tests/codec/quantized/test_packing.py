"""Codes of b bits: by hand, there and back, and the same in torch."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.codec.quantized.packing import pack, unpack
from tersor.format.layout import row_bytes


def test_the_drawing() -> None:
    """Three bits, as in the module's drawing: codes 1, 2, 7 begin in byte 0, the third ends in byte 1."""
    packed = pack(np.array([[1, 2, 7, 0, 0, 5, 0, 0]], np.uint8), 3)
    assert packed.tolist() == [[1 | 2 << 3 | (7 & 3) << 6, 7 >> 2 | (5 & 1) << 7, 5 >> 1]]


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 517])
def test_there_and_back(width: int, n: int) -> None:
    codes = np.random.default_rng(n).integers(0, 1 << width, (5, n)).astype(np.uint8)
    packed = pack(codes, width)
    assert packed.shape == (5, row_bytes(n, width)) == (5, -(-n // 8) * width)
    np.testing.assert_array_equal(unpack(packed, width, n), codes)
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    assert not bits[:, n * width :].any()
    by_definition = (bits[:, : n * width].reshape(5, n, width) << np.arange(width)).sum(axis=2)
    np.testing.assert_array_equal(by_definition, codes)


@pytest.mark.parametrize("width", range(1, 9))
def test_rows_and_runs_of_eight_columns_are_cut_out_of_the_bytes(width: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << width, (6, 40)).astype(np.uint8)
    cut = pack(codes, width)[2:5, 2 * width : 4 * width]
    np.testing.assert_array_equal(unpack(cut, width, 16), codes[2:5, 16:32])


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("n", [1, 8, 517])
def test_torch_takes_out_the_same(width: int, n: int) -> None:
    torch = pytest.importorskip("torch")
    from tersor.codec.quantized import packing_torch

    packed = pack(np.random.default_rng(n).integers(0, 1 << width, (5, n)).astype(np.uint8), width)
    found = packing_torch.unpack(torch.from_numpy(packed), width, n)
    np.testing.assert_array_equal(found.numpy(), unpack(packed, width, n))


def test_torch_widens_unsigned_numbers() -> None:
    torch = pytest.importorskip("torch")
    from tersor.codec.quantized.packing_torch import widened

    for dtype, most in ((np.uint16, 2**16 - 1), (np.uint32, 2**32 - 1)):
        numbers = np.array([0, 1, most // 2, most // 2 + 1, most], dtype)
        assert widened(torch.from_numpy(numbers)).tolist() == numbers.tolist()
