"""A tile needs nothing but its bytes, its place and the book: parts are slices of the whole."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest

from crafting import HUFFMAN_DTYPES, gaussian_bytes
from tersor.codec.proof import strips
from tersor.format.errors import BadTile

SHAPES = [(1, 64), (16, 128), (35, 391), (48, 256), (5, 33, 3), (300,)]


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_and_strips_are_slices(codec: ModuleType, dtype: str, shape: tuple[int, ...]) -> None:
    data = gaussian_bytes(shape, dtype)
    packed = codec.encode(data, dtype, shape)
    rows, cols = packed.grid.rows, packed.grid.cols
    whole = data.reshape(rows, cols * HUFFMAN_DTYPES[dtype])
    rng = np.random.default_rng(0)
    for wanted in (np.arange(rows), np.arange(rows)[::-1], rng.integers(0, rows, 2 * rows + 1), np.arange(0)):
        assert (codec.decode_rows(packed, wanted) == whole[wanted]).all()
        assert codec.decode_rows(packed, wanted).shape == (wanted.size, whole.shape[1])
    for first in range(packed.grid.strips):
        for stop in range(first + 1, packed.grid.strips + 1):
            part = codec.decode_strips(packed, first, stop)
            assert part.tobytes() == whole[first * 16 : stop * 16].tobytes()


@pytest.mark.parametrize("row", [-1, 35, 2**40])
def test_a_row_outside_is_an_index_error(codec: ModuleType, row: int) -> None:
    packed = codec.encode(gaussian_bytes((35, 391)), "BF16", (35, 391))
    with pytest.raises(IndexError, match=r"0\.\.34"):
        codec.decode_rows(packed, np.array([0, row]))


def test_a_damaged_tile_harms_no_other(codec: ModuleType) -> None:
    shape = (64, 512)
    data = gaussian_bytes(shape)
    packed = codec.encode(data, "BF16", shape)
    tiles = packed.tiles.copy()
    begin, end = (int(o) * 16 for o in packed.offsets[4:6])  # strip 2, left
    tiles[begin:end] = 0xFF
    damaged = dataclasses.replace(packed, tiles=tiles)
    with pytest.raises(BadTile, match="tile 4"):
        codec.decode(damaged)
    intact = np.array([0, 15, 31, 48, 63])
    assert (codec.decode_rows(damaged, intact) == data.reshape(64, -1)[intact]).all()
    with pytest.raises(BadTile, match=r"spot.*tile 4"):
        codec.decode_rows(damaged, np.array([32]), "spot")
    with pytest.raises(BadTile, match="tile 4"):
        codec.decode_strips(damaged, 1, 4)


def test_strips_walk_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.codec import encode, proof

    monkeypatch.setattr(proof, "_STEP_BYTES", 16 * 391 * 2 * 2)  # two strips at a time
    data = gaussian_bytes((83, 391))
    pieces = list(strips(encode(data, "BF16", (83, 391))))
    assert [(first, stop) for first, stop, _ in pieces] == [(0, 2), (2, 4), (4, 6)]
    assert b"".join(piece.tobytes() for _, _, piece in pieces) == data.tobytes()
