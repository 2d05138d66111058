"""Rows of a matrix in the `fast` layout: for an embedding whose table is the output head's weight.

    window_decode_rows(blocks, places, records, wanted, rows, cols) -> (n, cols) for int64 `wanted` (n,)

A row outside the matrix is the nearest one inside on a GPU, and an error on the CPU.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tersor.format.constants import TILE_ROWS
from tersor.kernels.compiler import Program
from tersor.kernels.launcher import Kernel, Launch
from tersor.kernels.window import reference
from tersor.kernels.window.layout import BLOCK_BYTES, MACROS, Geometry

PROGRAM = Program("window_rows.cu", "window_decode_rows", MACROS)
_WARPS = 4

_library = torch.library.Library("tersor", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "window_decode_rows(Tensor blocks, Tensor places, Tensor records, Tensor wanted, int rows, int cols) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@cache
def _kernel() -> Kernel:
    return Kernel(PROGRAM)


def _cpu(blocks: Tensor, places: Tensor, records: Tensor, wanted: Tensor, rows: int, cols: int) -> Tensor:
    if wanted.numel() and not (int(wanted.min()) >= 0 and int(wanted.max()) < rows):
        raise IndexError(f"rows {int(wanted.min())} to {int(wanted.max())} of a matrix that has {rows}")
    strips = -(-rows // TILE_ROWS)
    stage, place = blocks.numel() // strips, (places.numel() - 1) // strips
    out = torch.empty((wanted.numel(), cols), dtype=torch.bfloat16)
    of_strip = torch.div(wanted, TILE_ROWS, rounding_mode="floor")
    for strip in sorted(set(of_strip.tolist())):
        height = min(TILE_ROWS, rows - strip * TILE_ROWS)
        own = reference.Window(
            height,
            cols,
            blocks[strip * stage : (strip + 1) * stage].numpy(),
            places[strip * place : (strip + 1) * place + 1].numpy(),
            records.numpy(),
        )
        weight = torch.from_numpy(reference.unpack(own).view(np.int16)).view(torch.bfloat16)
        here = of_strip == strip
        out[here] = weight[wanted[here] % TILE_ROWS]
    return out


def _cuda(blocks: Tensor, places: Tensor, records: Tensor, wanted: Tensor, rows: int, cols: int) -> Tensor:
    out = blocks.new_empty((wanted.numel(), cols), dtype=torch.bfloat16)
    if not wanted.numel():
        return out
    geometry = Geometry(rows, cols)
    row_blocks = blocks.numel() // (geometry.strips * BLOCK_BYTES)
    _kernel()(
        Launch((wanted.numel(), -(-geometry.segments // _WARPS)), 32 * _WARPS), blocks.device,
        blocks, places, records, wanted.contiguous(), out, rows, cols, row_blocks, geometry.segments,
    )  # fmt: skip
    return out


def _fake(blocks: Tensor, places: Tensor, records: Tensor, wanted: Tensor, rows: int, cols: int) -> Tensor:
    return blocks.new_empty((wanted.shape[0], cols), dtype=torch.bfloat16)


_library.impl("window_decode_rows", _cpu, "CPU")  # type: ignore[no-untyped-call]
_library.impl("window_decode_rows", _cuda, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("tersor::window_decode_rows", _fake, lib=_library)
