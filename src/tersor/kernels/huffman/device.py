"""Decode and encode the huffman codec's tiles on the GPU; FORMAT.md section 3 says what they hold.

The results are those of `tersor.codec`, bit for bit. Decoding neither waits for the GPU nor
allocates anything but its result, so CUDA graphs can capture it. Encoding waits once: the code is made
on the GPU, too, but how much memory the result takes is known only when every tile's size is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch

from tersor.codec.packed import check_reach
from tersor.format.constants import ALIGN, MAX_CODE_BITS, STREAM, SYMBOLS, TAIL, TILE_COLS, TILE_ROWS
from tersor.format.dtypes import KINDS
from tersor.format.layout import Grid
from tersor.kernels.compiler import Program
from tersor.kernels.launcher import Kernel, Launch, multiprocessors, shared_limit

Stored = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # tiles, offsets, book

MATRICES = 8  # decoded by one launch at most
_MOST_WARPS, _FEWEST_WARPS = 12, SYMBOLS // 32  # of huffman_decode; a thread per symbol begins the table
_ROW_WARPS = 12
_ROW_BLOCKS = 2  # per multiprocessor; each builds the table once
_COUNT_THREADS = 2 * SYMBOLS  # BOOK_THREADS in huffman_book.cuh
_COUNT_BLOCKS = 4  # per multiprocessor
_SIZE_WARPS, _WRITE_WARPS = 8, 4
_TABLE_BYTES = 8 << MAX_CODE_BITS
_BEHIND = 256  # bytes behind the last slot that a damaged stream may run into
_STREAM_BYTES = STREAM + 12  # a lane's symbols and room for noise (ROW_WORDS in huffman.cuh)
_ROWS_SHARED = _TABLE_BYTES + _ROW_WARPS * 32 * _STREAM_BYTES
_COUNT_BLOCK = 1 << 16  # elements


class _Matrix(ctypes.Structure):
    """`struct Matrix` of huffman_decode.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tiles", "offsets", "book", "out")),
        *((name, ctypes.c_int) for name in ("rows", "cols", "count", "before")),
    )


class _Matrices(ctypes.Structure):
    _fields_ = (("at", _Matrix * MATRICES), ("count", ctypes.c_int), ("tiles", ctypes.c_int))


class _Work(ctypes.Structure):
    """`struct Work` of huffman_encode.cu."""

    _fields_ = (
        ("counts", ctypes.c_uint64 * SYMBOLS),
        ("units", ctypes.c_uint64),
        ("done", ctypes.c_uint32 * 2),
        ("codes", ctypes.c_uint32 * SYMBOLS),
    )


@dataclass(frozen=True)
class Decoding:
    """How `huffman_decode` is built for a kind of elements and a size of shared memory.

    `warps` share a multiprocessor and the table. `slot`: bytes kept for a tile's streams, which FORMAT.md lets
    grow to 6144; longer ones are read where they are. Exponents take 1400, what float16 and float8 code twice that.
    `overlap`: blocks are placed while the kernel before ends (sm_90). `early`: they read the stored arrays then, too,
    which must not be the results of a kernel that may still run.
    """

    kind: int
    warps: int
    slot: int
    overlap: bool = True
    early: bool = False

    @classmethod
    def fitting(cls, kind: int, shared: int) -> Decoding:
        """At most 12 warps: more of them only wait for each other (measured on an H200); 8 build the table."""
        slot = 2048 if kind in (KINDS["BF16"], KINDS["F32"]) else 3584
        for warps in range(_MOST_WARPS, _FEWEST_WARPS, -1):
            if cls(kind, warps, slot).shared <= shared:
                return cls(kind, warps, slot)
        spare = (shared - cls(kind, _FEWEST_WARPS, -16).shared) // (2 * _FEWEST_WARPS) - 16
        return cls(kind, _FEWEST_WARPS, min(slot, spare // ALIGN * ALIGN))

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the table, and per warp its symbols and two slots."""
        symbols = TILE_ROWS * (TILE_COLS // STREAM) * _STREAM_BYTES
        return _TABLE_BYTES + self.warps * (symbols + 2 * (self.slot + 16)) + _BEHIND


def program(entry: str, decoding: Decoding) -> Program:
    """The program of an entry point."""
    source = "huffman_decode.cu" if entry.startswith("huffman_decode") else "huffman_encode.cu"
    warps = decoding.warps if source == "huffman_decode.cu" else _SIZE_WARPS
    constants = (
        ("KIND", decoding.kind),
        ("WARPS", warps),
        ("ROW_WARPS", _ROW_WARPS),
        ("SLOT", decoding.slot),
        ("MATRICES", MATRICES),
        ("MATRICES_BYTES", ctypes.sizeof(_Matrices)),
        ("EARLY", int(decoding.early)),
        ("WRITE_WARPS", _WRITE_WARPS),
        ("WORK_BYTES", ctypes.sizeof(_Work)),
        ("TAIL", TAIL),
    )
    return Program(source, entry, constants)


@cache
def _kernel(entry: str, decoding: Decoding) -> Kernel:
    shared = {"huffman_decode": decoding.shared, "huffman_decode_rows": _ROWS_SHARED}.get(entry, 0)
    return Kernel(program(entry, decoding), shared)


def decode(
    tiles: torch.Tensor, offsets: torch.Tensor, book: torch.Tensor, dtype: str, out: torch.Tensor
) -> torch.Tensor:
    """Decode to `out`, a contiguous CUDA tensor of the original shape and dtype; returns it."""
    return decode_many([(tiles, offsets, book)], dtype, [out])[0]


def decode_many(
    stored: Sequence[Stored],
    dtype: str,
    out: Sequence[torch.Tensor],
    decoding: Decoding | None = None,
    overlap: bool = True,
) -> list[torch.Tensor]:
    """Decode tensors of one dtype to `out`, contiguous and on one GPU; returns them.

    Eight to a launch: what a launch costs (the tables, the first and the last tile of each warp) is paid once
    for them all. overlap: whether a launch may begin while the kernel before it ends.
    """
    if not out:
        return []
    device = out[0].device
    if decoding is None:
        decoding = Decoding.fitting(KINDS[dtype], shared_limit(device))
    for first in range(0, len(out), MATRICES):
        matrices = _matrices(stored[first : first + MATRICES], out[first : first + MATRICES])
        blocks = min(multiprocessors(device), matrices.tiles)
        launch = Launch((blocks, 1), 32 * decoding.warps, decoding.shared, decoding.overlap and overlap)
        _kernel("huffman_decode", decoding)(launch, device, matrices)
    return list(out)


def _matrices(stored: Sequence[Stored], out: Sequence[torch.Tensor]) -> _Matrices:
    grids = [Grid.of(tensor.shape) for tensor in out]
    before = [0, *accumulate(grid.tiles for grid in grids)]
    return _Matrices(
        (_Matrix * MATRICES)(
            *(
                _Matrix(
                    *(part.data_ptr() for part in parts), to.data_ptr(), grid.rows, grid.cols, grid.tiles, n
                )
                for parts, to, grid, n in zip(stored, out, grids, before, strict=False)
            )
        ),
        len(out),
        before[-1],
    )


def decode_rows(
    tiles: torch.Tensor,
    offsets: torch.Tensor,
    book: torch.Tensor,
    dtype: str,
    shape: Sequence[int],
    rows: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """Decode these rows (int64, within the matrix) to `out` [n, C]; returns it."""
    grid = Grid.of(shape)
    if rows.numel():
        blocks = min(_ROW_BLOCKS * multiprocessors(out.device), rows.numel())
        _kernel("huffman_decode_rows", Decoding.fitting(KINDS[dtype], shared_limit(out.device)))(
            Launch((blocks, 1), 32 * _ROW_WARPS, _ROWS_SHARED),
            out.device, tiles, offsets, book, rows.contiguous(), out, rows.numel(), grid.rows, grid.cols, grid.tiles,
        )  # fmt: skip
    return out


def encode(weight: torch.Tensor, dtype: str) -> Stored:
    """The stored form (tiles, offsets, book) of a contiguous CUDA tensor."""
    grid, device = Grid.of(weight.shape), weight.device
    kind = Decoding.fitting(KINDS[dtype], shared_limit(device))
    work = torch.zeros(ctypes.sizeof(_Work) // 8, dtype=torch.int64, device=device)
    book = torch.empty(SYMBOLS, dtype=torch.uint8, device=device)
    blocks, tail = divmod(weight.numel(), _COUNT_BLOCK)
    spread = Launch((min(_COUNT_BLOCKS * multiprocessors(device), blocks + 1), 1), _COUNT_THREADS)
    _kernel("huffman_count", kind)(spread, device, weight, work, book, blocks, tail)
    offsets = torch.empty(grid.tiles + 1, dtype=torch.uint32, device=device)
    lengths = torch.empty((grid.tiles, 32), dtype=torch.uint8, device=device)
    matrix = (grid.rows, grid.cols, grid.tiles)
    _kernel("huffman_size", kind)(
        _a_warp_each(grid.tiles, _SIZE_WARPS), device, weight, work, lengths, offsets, *matrix
    )
    units = int(work[_Work.units.offset // 8])  # waits
    check_reach(units, tuple(weight.shape))
    tiles = torch.empty(units * ALIGN + TAIL, dtype=torch.uint8, device=device)
    _kernel("huffman_write", kind)(
        _a_warp_each(grid.tiles, _WRITE_WARPS), device, weight, work, lengths, offsets, tiles, *matrix
    )
    return tiles, offsets, book


def _a_warp_each(tiles: int, warps: int) -> Launch:
    return Launch((-(-tiles // warps), 1), 32 * warps)
