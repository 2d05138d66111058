"""The matrix and its grid: FORMAT.md section 3, with the numbers of its text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.format.constants import CODEC_HUFFMAN, CODEC_RAW
from tersor.format.dtypes import BITS, RAW_BYTES, itemsize, nbytes
from tersor.format.errors import UnknownCodec, UnknownDtype
from tersor.format.layout import Grid, aligned, matrix_shape, raw_bytes_per_tile, stored_tensors
from tersor.format.manifest import TensorEntry


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((), (1, 1)),
        ((5,), (1, 5)),
        ((5000,), (1, 5000)),
        ((4096, 11008), (4096, 11008)),
        ((512, 80, 3), (512, 240)),  # a convolution
        ((64, 63), (1, 4032)),  # 63 columns are too few
        ((63, 64), (63, 64)),
        ((8, 1024, 4096), (8192, 4096)),  # experts, stacked
        ((10, 2, 2, 2), (1, 80)),
        ((0, 64), (0, 64)),
    ],
)
def test_matrix(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    assert matrix_shape(shape) == matrix


@given(st.lists(st.integers(1, 300), max_size=4))
def test_matrix_holds_every_element_and_merges_no_more_than_it_must(shape: list[int]) -> None:
    rows, cols = matrix_shape(shape)
    assert rows * cols == math.prod(shape)
    merged = next(k for k in range(len(shape) + 1) if math.prod(shape[len(shape) - k :]) == cols)
    assert cols >= 64 or cols == math.prod(shape)
    assert all(math.prod(shape[len(shape) - k :]) < 64 for k in range(merged))


@given(st.integers(1, 70), st.integers(1, 700))
def test_tiles_cover_the_matrix_once(rows: int, cols: int) -> None:
    grid = Grid(rows, cols)
    seen = np.zeros((rows, cols), np.int32)
    for index, tile in enumerate(grid):
        assert tile.index == index
        assert (tile.row % 16, tile.col % 256) == (0, 0)
        assert 1 <= tile.height <= 16
        assert 1 <= tile.width <= 256
        assert tile.streams == tile.height * -(-tile.width // 128)
        seen[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width] += 1
    assert (seen == 1).all()
    assert index + 1 == grid.tiles == grid.strips * grid.tile_cols


def test_a_full_tile_has_a_stream_for_each_lane_of_a_warp() -> None:
    assert Grid(16, 256).tile(0).streams == 32


def test_raw_planes_are_padded_to_16() -> None:
    tile = Grid(3, 5).tile(0)
    assert [raw_bytes_per_tile(d, tile) for d in ("BF16", "F16", "F32", "F8_E4M3")] == [16, 16, 48, 0]
    assert [aligned(n) for n in (0, 1, 15, 16, 17)] == [0, 16, 16, 16, 32]


def test_what_a_codec_declares() -> None:
    entry = TensorEntry(CODEC_HUFFMAN, "BF16", (33, 257), "0" * 64)
    parts = {p.name: (p.dtype, p.shape, p.optional) for p in stored_tensors("w", entry)}
    assert parts == {
        "w": ("U8", (0,), True),
        "w_book": ("U8", (256,), False),
        "w_offsets": ("U32", (3 * 2 + 1,), False),
        "w_tiles": ("U8", (None,), False),
    }
    raw = stored_tensors("w", TensorEntry(CODEC_RAW, "I64", (2,), "0" * 64))
    assert [(p.name, p.dtype, p.shape, p.optional) for p in raw] == [("w", "I64", (2,), False)]
    with pytest.raises(UnknownCodec, match="'w'"):
        stored_tensors("w", TensorEntry("ans", "BF16", (2,), "0" * 64))


def test_sizes_of_dtypes() -> None:
    assert all(itemsize(d) == raw + 1 for d, raw in RAW_BYTES.items())  # one byte of symbol, the rest raw
    assert nbytes("F4", 4) == 2
    assert nbytes("F6_E2M3", 4) == 3
    with pytest.raises(UnknownDtype, match="whole bytes"):
        nbytes("F4", 3)
    with pytest.raises(UnknownDtype, match="Q8"):
        nbytes("Q8", 3)
    assert BITS["BF16"] == 16
