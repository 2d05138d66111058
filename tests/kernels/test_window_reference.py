"""The `fast` layout in NumPy: every bit comes back, and the size is the one promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.format.constants import ALIGN
from tersor.kernels.fused.layout import ROW_SHIFT, STRIP_ROWS
from tersor.kernels.window.layout import BASES_AT, RECORD_HEAD, Geometry
from tersor.kernels.window.reference import Window, choose_base, pack, unpack


def gaussian(rows: int, cols: int) -> np.ndarray:
    values = (np.random.default_rng(rows * cols).standard_normal((rows, cols)) * 0.02).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def bits_per_weight(window: Window) -> float:
    return Geometry(window.rows, window.cols).bits_per_weight(window.records.size)


@given(st.integers(1, 40), st.integers(1, 1100), st.integers(0, 2**32 - 1))
def test_any_bits_of_any_size_come_back(rows: int, cols: int, seed: int) -> None:
    weight = np.random.default_rng(seed).integers(0, 1 << 16, (rows, cols)).astype(np.uint16)
    assert np.array_equal(unpack(pack(weight)), weight)


def test_all_bit_patterns_come_back() -> None:
    weight = np.arange(1 << 16).astype(np.uint16).reshape(64, 1024)
    assert np.array_equal(unpack(pack(weight)), weight)


@pytest.mark.parametrize("shape", [(64, 4096), (48, 2048), (32, 14336)])
def test_gaussian_weights_take_less_than_11_45_bits(shape: tuple[int, int]) -> None:
    window = pack(gaussian(*shape))
    assert np.array_equal(unpack(window), gaussian(*shape))
    assert 11 < bits_per_weight(window) < 11.45
    stored = window.blocks.nbytes + window.places.nbytes + window.records.nbytes
    assert bits_per_weight(window) == 8 * stored / (shape[0] * shape[1])


def test_base_is_the_smallest_of_the_best() -> None:
    exponents = np.full((2, 10), 120, np.uint8)
    exponents[1, :4] = 100
    assert choose_base(exponents).tolist() == [113, 113]


def test_base_never_makes_zeros_or_infinities_regular() -> None:
    assert choose_base(np.zeros((1, 8), np.uint8)).tolist() == [1]
    assert choose_base(np.full((1, 8), 255, np.uint8)).tolist() == [1]
    weight = np.array([[0x0000, 0x8000, 0x7F80, 0xFFC1, 0x0001, 0x3F80, 0xBF80, 0x7FFF]], np.uint16)
    assert np.array_equal(unpack(pack(weight)), weight)


def test_an_exception_names_its_row_and_column() -> None:
    weight = np.random.default_rng(0).integers(0, 1 << 16, (20, 700)).astype(np.uint16)
    window = pack(weight)
    for k, (first_row, first_col) in enumerate((r, c) for r in (0, 16) for c in (0, 512)):
        record = window.records[ALIGN * window.places[k] : ALIGN * window.places[k + 1]]
        running = record[:BASES_AT].view("<u2").astype(int)
        entries = record[RECORD_HEAD:].view("<u4")[: running[-1]]
        row, column = entries >> ROW_SHIFT & (STRIP_ROWS - 1), entries & ((1 << ROW_SHIFT) - 1)
        assert np.array_equal(weight[first_row + row, first_col + column], entries >> 16)
        assert np.array_equal(np.bincount(row, minlength=STRIP_ROWS).cumsum(), running)
        assert np.all(np.diff(entries & 0x1FFF) > 0)  # sorted by row and column
