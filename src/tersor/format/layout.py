"""How a tensor becomes a grid of tiles, and which arrays a codec stores for it.

FORMAT.md sections 2 and 3 in code. A tensor is seen as a matrix, the matrix as a grid of
tiles of 16 rows by 256 columns, a tile as streams of 128 symbols, one per lane of a warp:

      0        128       256
    0 |stream 0 |stream 1 |          rows of 16: the m of mma.m16n8k16, and the grain at which
    1 |stream 2 |stream 3 |          tensor parallelism cuts output features
    : |    :    |    :    |          columns of 256: the grain at which it cuts input features
   15 |stream 30|stream 31|

Tiles are decodable alone, so rows, columns, experts and embedding rows are cut out without
the rest. One long bit stream per matrix (as in DFloat11) would cost 0.1 bit less index per
weight and allow none of that.

A codec declares its stored arrays here, as data; the writer, the validator, `plan` and the
adapters read the declaration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tersor.format.constants import (
    ALIGN,
    CODEC_HUFFMAN,
    CODEC_INTEGERS,
    CODEC_RAW,
    CODEC_SPQR,
    MIN_COLS,
    MIN_ELEMENTS,
    STREAM,
    SYMBOLS,
    TILE_COLS,
    TILE_ROWS,
)
from tersor.format.dtypes import RAW_BYTES
from tersor.format.errors import UnknownCodec
from tersor.format.manifest import TensorEntry
from tersor.format.parameters import SpqrParameters


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The (rows, columns) as which a tensor of this shape is tiled.

    Columns are the product of the fewest trailing dimensions that reach 64, or of all: a
    convolution (512, 80, 3) is 512 x 240, experts (8, 1024, 4096) are 8192 x 4096.
    """
    cols = 1
    split = len(shape)
    while split > 0 and cols < MIN_COLS:
        split -= 1
        cols *= shape[split]
    return math.prod(shape[:split]), cols


def wants_compression(dtype: str, shape: Sequence[int]) -> bool:
    """Whether our writers try the huffman codec on a tensor (FORMAT.md section 4)."""
    return dtype in RAW_BYTES and len(shape) >= 2 and math.prod(shape) >= MIN_ELEMENTS


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the format's alignment of 16."""
    return -(-nbytes // ALIGN) * ALIGN


def row_bytes(codes: int, width: int) -> int:
    """Bytes of a row of `codes` codes of `width` bits: eight of them take `width` bytes."""
    return -(-codes // 8) * width


@dataclass(frozen=True)
class Tile:
    """One tile's place: rows [row, row + height) and columns [col, col + width) of the matrix."""

    index: int
    row: int
    col: int
    height: int
    width: int

    @property
    def streams_per_row(self) -> int:
        """Streams in one row of this tile."""
        return -(-self.width // STREAM)

    @property
    def streams(self) -> int:
        """Streams in this tile."""
        return self.height * self.streams_per_row


@dataclass(frozen=True)
class Grid:
    """The tiles of a `rows` x `cols` matrix."""

    rows: int
    cols: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Grid:
        """The grid of a tensor of this shape."""
        return cls(*matrix_shape(shape))

    @property
    def strips(self) -> int:
        """Rows of tiles."""
        return -(-self.rows // TILE_ROWS)

    @property
    def tile_cols(self) -> int:
        """Columns of tiles."""
        return -(-self.cols // TILE_COLS)

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.strips * self.tile_cols

    def tile(self, index: int) -> Tile:
        """The tile number `index`, counted row by row."""
        strip, tile_col = divmod(index, self.tile_cols)
        row, col = strip * TILE_ROWS, tile_col * TILE_COLS
        return Tile(index, row, col, min(TILE_ROWS, self.rows - row), min(TILE_COLS, self.cols - col))

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(index) for index in range(self.tiles))


@dataclass(frozen=True)
class StoredTensor:
    """One array that a codec stores: its name, dtype and shape (None where the data decides)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    optional: bool = False


# Leaf suffixes of the huffman codec. `_[a-z]+`, so that `weight` gives `weight_book`: frameworks
# rewrite names that begin with weight_g / weight_v or end in _scale.
BOOK, OFFSETS, TILES = "_book", "_offsets", "_tiles"
# Those of the codecs for quantised tensors: spqr's, and what integers add to huffman's.
CODES, LEVELS, STATS, ORDER = "_codes", "_levels", "_stats", "_order"
COUNTS, PLACES, DELTAS = "_counts", "_places", "_deltas"
STEPS = "_steps"
SUFFIXES = (BOOK, OFFSETS, TILES, CODES, LEVELS, STATS, ORDER, COUNTS, PLACES, DELTAS, STEPS)


def stored_tensors(name: str, entry: TensorEntry) -> tuple[StoredTensor, ...]:
    """The arrays stored for the tensor `name` that `entry` describes."""
    if entry.codec == CODEC_RAW:
        return (StoredTensor(name, entry.dtype, entry.shape),)
    guard = StoredTensor(name, "U8", (0,), optional=True)
    coded = (
        StoredTensor(name + BOOK, "U8", (SYMBOLS,)),
        StoredTensor(name + OFFSETS, "U32", (Grid.of(entry.shape).tiles + 1,)),
        StoredTensor(name + TILES, "U8", (None,)),
    )
    if entry.codec == CODEC_HUFFMAN:
        return (guard, *coded)
    if entry.codec == CODEC_INTEGERS:
        return (guard, *coded, StoredTensor(name + STEPS, "U16", entry.shape[1:]))
    if entry.codec == CODEC_SPQR and isinstance(entry.parameters, SpqrParameters):
        return (guard, *_spqr_tensors(name, entry.shape[0], entry.shape[1], entry.parameters))
    raise UnknownCodec(
        f"tensor {name!r}: codec {entry.codec!r} is unknown; is the checkpoint newer than tersor?"
    )


def _spqr_tensors(name: str, rows: int, columns: int, p: SpqrParameters) -> list[StoredTensor]:
    groups, runs = p.groups(columns), p.runs(rows)
    parts = [StoredTensor(name + CODES, "U8", (rows, row_bytes(columns, p.bits)))]
    if p.stat_bits:
        parts.append(StoredTensor(name + LEVELS, "U8", (rows, row_bytes(2 * groups, p.stat_bits))))
    parts.append(StoredTensor(name + STATS, "U16", (runs, groups, 4 if p.stat_bits else 2)))
    if p.order:
        parts.append(StoredTensor(name + ORDER, "U16" if columns <= 1 << 16 else "U32", (columns,)))
    if p.outliers:
        parts.append(StoredTensor(name + COUNTS, "U16", (Grid(rows, columns).tiles,)))
        parts += [StoredTensor(name + part, "U16", (p.outliers,)) for part in (PLACES, DELTAS)]
    return parts


def raw_bytes_per_tile(dtype: str, tile: Tile) -> int:
    """Bytes of the raw planes at the head of a tile, padding included."""
    return aligned(tile.height * tile.width * RAW_BYTES[dtype])
