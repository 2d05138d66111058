"""Beyond 2^31 elements and 2^32 bytes: the compiled loops at such addresses, in memory that is never touched.

`np.zeros` of gigabytes costs nothing until it is written to, so the last strip of a tensor of
2^31 elements can be coded and decoded for real without the rest.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from crafting import gaussian_bytes
from tersor.codec.streams import encode_table, multi_table
from tersor.codec.tiles import decode_row, decode_tiles, encode_tiles
from tersor.format.dtypes import KINDS
from tersor.format.layout import Grid

COLS = 4096
ROWS = (1 << 31) // COLS + 16  # the last strip begins at element 2^31
HUGE = Grid(ROWS, COLS)
FP8 = KINDS["F8_E4M3"]


def zeros(n: int, dtype: type) -> np.ndarray:
    try:
        return np.zeros(n, dtype)
    except MemoryError:
        pytest.skip("this machine does not lend so much address space")


def test_grid_of_a_huge_tensor() -> None:
    grid = Grid.of((1 << 20, 1 << 16))
    assert grid.tiles == (1 << 16) * (1 << 8)
    last = grid.tile(grid.tiles - 1)
    assert (last.row, last.col, last.height, last.width) == ((1 << 20) - 16, (1 << 16) - 256, 16, 256)
    experts = Grid.of((384, 7168, 4096))
    assert (experts.rows, experts.cols) == (384 * 7168, 4096)


def test_the_last_strip_beyond_2_31_elements(fast: ModuleType) -> None:
    data = gaussian_bytes((16, COLS), "F8_E4M3")
    small = fast.encode(data, "F8_E4M3", (16, COLS))
    elements = zeros(ROWS * COLS, np.uint8)
    elements[-data.size :] = data
    first, stop = HUGE.tiles - HUGE.tile_cols, HUGE.tiles
    out, units = np.empty(small.tiles.size + 64, np.uint8), np.zeros(stop - first, np.uint32)
    used = encode_tiles(FP8, 0, elements, ROWS, COLS, first, stop, encode_table(small.book), out, units)
    assert out[:used].tobytes() == small.tiles[:-16].tobytes()

    offsets = np.zeros(HUGE.tiles + 1, np.uint32)
    offsets[first:] = small.offsets
    table, meta = multi_table(small.book)
    back = zeros(ROWS * COLS, np.uint8)
    bad = decode_tiles(FP8, 0, small.tiles, offsets, ROWS, COLS, first, stop, table, meta, back)
    assert bad == -1
    assert back[-data.size :].tobytes() == data.tobytes()
    assert not back[-2 * data.size : -data.size].any()


def test_a_tile_beyond_2_32_bytes(fast: ModuleType) -> None:
    data = gaussian_bytes((16, 256))
    small = fast.encode(data, "BF16", (16, 256))
    base = (1 << 32) + 4096  # where this tile lies, far behind a 32-bit byte address
    tiles = zeros(base + small.tiles.size, np.uint8)
    tiles[base:] = small.tiles
    offsets = (small.offsets + np.uint32(base // 16)).astype(np.uint32)
    table, meta = multi_table(small.book)
    row = np.zeros(256, np.uint16)
    assert decode_row(KINDS["BF16"], 1, tiles, offsets, 16, 256, 5, table, meta, row, 0) == -1
    assert row.tobytes() == data.reshape(16, -1)[5].tobytes()
