"""What must hold before a kernel reads a stored tensor, checked once, when a model is loaded.

On the CPU every decoding checks what it reads (`tersor.codec.fast`). A GPU kernel does not: it
takes offsets and stream lengths at their word, so a damaged or malicious file could make it read
beyond its buffers. Here the same rules of FORMAT.md are checked by plain torch operations, on
whatever device the arrays are: the book, the offsets, and that each tile's parts fill its extent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tersor.codec.huffman import check_book
from tersor.format.constants import ALIGN, STREAM, TAIL, TILE_COLS, TILE_ROWS
from tersor.format.dtypes import RAW_BYTES
from tersor.format.errors import BadOffsets, BadTile
from tersor.format.layout import Grid

_CHUNK = 1 << 16  # tiles checked at a time
_STREAMS = TILE_ROWS * TILE_COLS // STREAM


def check_huffman(
    tiles: Tensor, offsets: Tensor, book: Tensor, dtype: str, shape: Sequence[int], where: str
) -> None:
    """Raise BadBook, BadOffsets or BadTile, with `where`, unless a kernel may decode these arrays."""
    check_book(book.detach().cpu().numpy().astype(np.uint8), where)
    grid = Grid.of(shape)
    starts = ALIGN * (offsets.detach().view(torch.int32).long() & 0xFFFFFFFF)
    grows = bool((starts[1:] > starts[:-1]).all())
    if int(starts[0]) != 0 or not grows or int(starts[-1]) + TAIL != tiles.numel():
        raise BadOffsets(
            f"{where}: the tile offsets do not grow from 0 to the end of the tiles; the file is damaged"
        )
    for first in range(0, grid.tiles, _CHUNK):
        index = torch.arange(first, min(first + _CHUNK, grid.tiles), device=tiles.device)
        bad = _unfilled(tiles.detach(), starts, index, grid, RAW_BYTES[dtype])
        if bool(bad.any()):
            tile = int(index[bad][0])
            raise BadTile(
                f"{where}: the stream lengths of tile {tile} do not fill its extent; the file is damaged"
            )


def _unfilled(tiles: Tensor, starts: Tensor, index: Tensor, grid: Grid, raw: int) -> Tensor:
    """Which of the tiles `index` (n,) have parts that do not add up to their extent."""
    height = (grid.rows - TILE_ROWS * (index // grid.tile_cols)).clamp(max=TILE_ROWS)
    width = (grid.cols - TILE_COLS * (index % grid.tile_cols)).clamp(max=TILE_COLS)
    streams = height * ((width + STREAM - 1) // STREAM)
    lengths_at = starts[index] + _aligned(raw * height * width)
    body = lengths_at + _aligned(streams)
    lane = torch.arange(_STREAMS, device=tiles.device)
    places = (lengths_at[:, None] + lane).clamp(max=tiles.numel() - 1)
    lengths = tiles[places].long() * (lane < streams[:, None])
    return body + _aligned(lengths.sum(1)) != starts[index + 1]


def _aligned(nbytes: Tensor) -> Tensor:
    return (nbytes + ALIGN - 1) // ALIGN * ALIGN
