"""Decode and encode the huffman codec's tiles on the GPU; FORMAT.md section 3 says what they hold.

The results are those of `tersor.codec`, bit for bit. Decoding neither waits for the GPU nor
allocates anything but its result, so CUDA graphs can capture it. Encoding waits twice: a code is
made from the counts of all symbols, and the stored size is known only when the code is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from tersor.codec.huffman import canonical_codes, code_lengths
from tersor.format.constants import ALIGN, MAX_CODE_BITS, STREAM, SYMBOLS, TAIL, TILE_COLS, TILE_ROWS
from tersor.format.layout import Grid
from tersor.kernels.compiler import Program
from tersor.kernels.launcher import Kernel, Launch, multiprocessors, shared_limit

KINDS = {"BF16": 0, "F16": 1, "F32": 2, "F8_E4M3": 3, "F8_E5M2": 3}
_INTEGERS = {"BF16": torch.int16, "F16": torch.int16, "F32": torch.int32}

_MOST_WARPS, _FEWEST_WARPS = 12, SYMBOLS // 32  # of huffman_decode; a thread per symbol begins the table
_ROW_WARPS = 12
_ROW_BLOCKS = 2  # per multiprocessor; each builds the table once
_ENCODE_WARPS = 8
_TABLE_BYTES = 8 << MAX_CODE_BITS
_STREAM_BYTES = STREAM + 12  # a lane's symbols and room for noise (ROW_WORDS in huffman.cuh)
_ROWS_SHARED = _TABLE_BYTES + _ROW_WARPS * 32 * _STREAM_BYTES
_COUNT_BLOCK = 1 << 16  # elements


@dataclass(frozen=True)
class Decoding:
    """How `huffman_decode` is built for a kind of elements and a size of shared memory.

    `warps` share a multiprocessor and the table. `slot`: bytes kept for a tile's streams, which FORMAT.md lets
    grow to 6144; longer ones are read where they are. Exponents take 1400, what float16 and float8 code twice that.
    """

    kind: int
    warps: int
    slot: int

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
        return _TABLE_BYTES + self.warps * (symbols + 2 * (self.slot + 16))


def program(entry: str, decoding: Decoding) -> Program:
    """The program of an entry point."""
    source = "huffman_decode.cu" if entry.startswith("huffman_decode") else "huffman_encode.cu"
    warps = decoding.warps if source == "huffman_decode.cu" else _ENCODE_WARPS
    constants = (
        ("KIND", decoding.kind),
        ("WARPS", warps),
        ("ROW_WARPS", _ROW_WARPS),
        ("SLOT", decoding.slot),
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
    grid = Grid.of(out.shape)
    blocks = min(multiprocessors(out.device), grid.tiles)
    decoding = Decoding.fitting(KINDS[dtype], shared_limit(out.device))
    _kernel("huffman_decode", decoding)(
        Launch((blocks, 1), 32 * decoding.warps, decoding.shared),
        out.device, tiles, offsets, book, out, grid.rows, grid.cols, grid.tiles,
    )  # fmt: skip
    return out


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


def encode(weight: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The stored form (tiles, offsets, book) of a contiguous CUDA tensor."""
    grid, device = Grid.of(weight.shape), weight.device
    kind = Decoding.fitting(KINDS[dtype], shared_limit(device))
    counts = torch.zeros(SYMBOLS, dtype=torch.int64, device=device)
    blocks, tail = divmod(weight.numel(), _COUNT_BLOCK)
    spread = Launch((min(4 * multiprocessors(device), blocks + 1), 1), 512)
    _kernel("huffman_count", kind)(spread, device, weight, counts, blocks, tail)
    book = code_lengths(counts.cpu().numpy())
    codes = canonical_codes(book).astype(np.int32) | book.astype(np.int32) << 16
    on_device = torch.from_numpy(codes).to(device)
    per_tile = Launch((-(-grid.tiles // _ENCODE_WARPS), 1), 32 * _ENCODE_WARPS)
    lengths = torch.empty((grid.tiles, 32), dtype=torch.uint8, device=device)
    sizes = torch.empty(grid.tiles, dtype=torch.int32, device=device)
    matrix = (grid.rows, grid.cols, grid.tiles)
    _kernel("huffman_size", kind)(per_tile, device, weight, on_device, lengths, sizes, *matrix)
    offsets = torch.zeros(grid.tiles + 1, dtype=torch.int64, device=device)
    torch.cumsum(sizes, 0, out=offsets[1:])
    tiles = torch.zeros(int(offsets[-1]) * ALIGN + TAIL, dtype=torch.uint8, device=device)
    offsets = offsets.to(torch.int32)
    _kernel("huffman_write", kind)(per_tile, device, weight, on_device, lengths, offsets, tiles, *matrix)
    torch.cuda.current_stream(
        device
    ).synchronize()  # before a kernel that overlaps its predecessor may read it
    return tiles, offsets.view(torch.uint32), torch.from_numpy(book).to(device)
