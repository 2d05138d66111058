"""Decode and encode the huffman codec's tiles on the GPU; FORMAT.md section 3 says what they hold.

The results are those of `tersor.codec`, bit for bit. Decoding neither waits for the GPU nor
allocates anything but its result, so CUDA graphs can capture it. Encoding waits twice: a code is
made from the counts of all symbols, and the stored size is known only when the code is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from tersor.codec.huffman import canonical_codes, code_lengths
from tersor.format.constants import ALIGN, MAX_CODE_BITS, STREAM, SYMBOLS, TAIL, TILE_COLS, TILE_ROWS
from tersor.format.layout import Grid
from tersor.kernels.compiler import Program
from tersor.kernels.launcher import Kernel, Launch, multiprocessors

KINDS = {"BF16": 0, "F16": 1, "F32": 2, "F8_E4M3": 3, "F8_E5M2": 3}
_INTEGERS = {"BF16": torch.int16, "F16": torch.int16, "F32": torch.int32}

_DECODE_WARPS = 32  # of one multiprocessor: they share the table
_ROW_WARPS = 8
_ENCODE_WARPS = 8
_TABLE_BYTES = 4 << MAX_CODE_BITS
_STREAM_BYTES = STREAM + 4  # a lane's symbols, a word more for the banks
_DECODE_SHARED = _TABLE_BYTES + _DECODE_WARPS * TILE_ROWS * (TILE_COLS // STREAM) * _STREAM_BYTES
_ROWS_SHARED = _TABLE_BYTES + _ROW_WARPS * 32 * _STREAM_BYTES
_COUNT_BLOCK = 1 << 16  # elements


@cache
def program(entry: str, dtype: str) -> Program:
    """The program of an entry point for tensors of this dtype (safetensors' spelling)."""
    source = "huffman_decode.cu" if entry.startswith("huffman_decode") else "huffman_encode.cu"
    warps = _DECODE_WARPS if entry == "huffman_decode" else _ENCODE_WARPS
    return Program(source, entry, (("KIND", KINDS[dtype]), ("WARPS", warps), ("ROW_WARPS", _ROW_WARPS)))


@cache
def _kernel(entry: str, kind: int) -> Kernel:
    dtype = next(name for name, number in KINDS.items() if number == kind)
    shared = {"huffman_decode": _DECODE_SHARED, "huffman_decode_rows": _ROWS_SHARED}.get(entry, 0)
    return Kernel(program(entry, dtype), shared)


def decode(
    tiles: torch.Tensor, offsets: torch.Tensor, book: torch.Tensor, dtype: str, out: torch.Tensor
) -> torch.Tensor:
    """Decode to `out`, a contiguous CUDA tensor of the original shape and dtype; returns it."""
    grid = Grid.of(out.shape)
    blocks = min(multiprocessors(out.device), -(-grid.tiles // _DECODE_WARPS))
    _kernel("huffman_decode", KINDS[dtype])(
        Launch((blocks, 1), 32 * _DECODE_WARPS, _DECODE_SHARED),
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
        _kernel("huffman_decode_rows", KINDS[dtype])(
            Launch((rows.numel(), 1), 32 * _ROW_WARPS, _ROWS_SHARED),
            out.device, tiles, offsets, book, rows.contiguous(), out, grid.rows, grid.cols, grid.tiles,
        )  # fmt: skip
    return out


def encode(weight: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The stored form (tiles, offsets, book) of a contiguous CUDA tensor."""
    grid, device, kind = Grid.of(weight.shape), weight.device, KINDS[dtype]
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
