"""The `fast` layout on the GPU: pack, decode, multiply.

Bytes are uint8, everything of 16 bits int16 and of 32 bits int32 (torch computes little with unsigned
types). The matrix's `rows` and `cols` travel with the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from tersor.format.constants import ALIGN
from tersor.kernels.compiler import Program
from tersor.kernels.launcher import Kernel, Launch, multiprocessors, shared_limit
from tersor.kernels.window.layout import (
    EXCEPTION_BYTES,
    MACROS,
    RECORD_HEAD,
    STRIP_ROWS,
    Geometry,
)
from tersor.kernels.window.linear import MAX_TOKENS, Variant, kernel, variant_for

_ROW_THREADS = 256
_WARPS = 8
_DECODE_THREADS = 128


@dataclass(frozen=True)
class WindowTensors:
    """A matrix in the `fast` layout; the fields are those of `reference.Window`, as torch tensors."""

    rows: int
    cols: int
    blocks: torch.Tensor  # uint8
    places: torch.Tensor  # int32 (records + 1,)
    records: torch.Tensor  # uint8 (16 * places[-1],)

    @property
    def geometry(self) -> Geometry:
        """What follows from the size."""
        return Geometry(self.rows, self.cols)

    @property
    def bits_per_weight(self) -> float:
        """Everything counted."""
        return self.geometry.bits_per_weight(self.records.numel())


@cache
def _pack_kernel(entry: str) -> Kernel:
    return Kernel(Program("window_pack.cu", entry, MACROS))


@cache
def _decode_kernel() -> Kernel:
    return Kernel(Program("window_decode.cu", "window_decode", MACROS))


@cache
def _combine_kernel() -> Kernel:
    return Kernel(Program("window_combine.cu", "window_combine"))


def pack(weight: torch.Tensor) -> WindowTensors:
    """Pack a bfloat16 matrix (rows, cols) on the GPU. Waits for it: the number of exceptions decides sizes."""
    weight = weight.detach().contiguous()
    rows, cols = weight.shape
    geometry, device = Geometry(rows, cols), weight.device
    base = weight.new_empty((rows, geometry.segments), dtype=torch.uint8)
    counts = weight.new_empty((rows, geometry.segments), dtype=torch.int32)
    _pack_kernel("window_rows")(
        Launch((rows * geometry.segments, 1), _ROW_THREADS),
        device,
        weight,
        base,
        counts,
        cols,
        geometry.segments,
    )
    places = _places(counts, geometry)
    blocks = weight.new_empty(geometry.block_bytes, dtype=torch.uint8)
    number = geometry.strips * geometry.blocks
    _pack_kernel("window_blocks")(
        Launch((-(-number // _WARPS), 1), 32 * _WARPS),
        device, weight, base, blocks, rows, cols, geometry.segments, geometry.blocks, number,
    )  # fmt: skip
    records = torch.zeros(int(places[-1]) * ALIGN, dtype=torch.uint8, device=device)
    _pack_kernel("window_records")(
        Launch((geometry.records, 1), 32 * STRIP_ROWS),
        device, weight, base, counts, places, records, rows, cols, geometry.segments,
    )  # fmt: skip
    torch.cuda.current_stream(
        device
    ).synchronize()  # before a kernel that overlaps its predecessor may read it
    return WindowTensors(rows, cols, blocks, places, records)


def _places(counts: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Where each record begins (records + 1,), from the exceptions of each row and segment."""
    pad = geometry.strips * STRIP_ROWS - geometry.rows
    padded = torch.nn.functional.pad(counts, (0, 0, 0, pad))
    of_record = padded.view(geometry.strips, STRIP_ROWS, geometry.segments).sum(1)
    units = (RECORD_HEAD + EXCEPTION_BYTES * of_record + ALIGN - 1) // ALIGN
    return torch.nn.functional.pad(units.reshape(-1).cumsum(0), (1, 0)).to(torch.int32)


def decode(packed: WindowTensors) -> torch.Tensor:
    """The bfloat16 matrix (rows, cols), bit for bit."""
    geometry = packed.geometry
    out = packed.blocks.new_empty((packed.rows, packed.cols), dtype=torch.bfloat16)
    _decode_kernel()(
        Launch((geometry.records, 1), _DECODE_THREADS), packed.blocks.device,
        packed.blocks, packed.places, packed.records, out,
        packed.rows, packed.cols, geometry.blocks, geometry.segments,
    )  # fmt: skip
    return out


def linear(
    x: torch.Tensor, packed: WindowTensors, bias: torch.Tensor | None = None, variant: Variant | None = None
) -> torch.Tensor:
    """x (tokens, cols) bfloat16 times the matrix transposed, plus bias (rows,): (tokens, rows) bfloat16.

    More tokens than one launch takes are multiplied in turns; every row of the result is the same either way.
    """
    tokens, device = x.shape[0], x.device
    pad_cols = packed.geometry.padded_cols - packed.cols
    x = torch.nn.functional.pad(x, (0, pad_cols)) if pad_cols else x.contiguous()
    if x.data_ptr() % 16:  # a view into something larger; the kernel reads 16 bytes at a time
        x = x.clone()
    y = x.new_empty((tokens, packed.rows))
    most = variant.tokens if variant else MAX_TOKENS
    for first in range(0, tokens, most):
        part = slice(first, min(first + most, tokens))
        number = part.stop - part.start
        build = variant or variant_for(number, packed.geometry, multiprocessors(device), shared_limit(device))
        _launch(build, x[part], packed, bias, y[part])
    return y


def _launch(
    variant: Variant, x: torch.Tensor, packed: WindowTensors, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    """One launch, for up to `variant.tokens` rows of `x`; the kernel reads whole rows, so few are padded."""
    geometry, device, tokens, rows = packed.geometry, x.device, x.shape[0], packed.rows
    if not variant.slice_spans and tokens < variant.tokens:
        x = torch.nn.functional.pad(x, (0, 0, 0, variant.tokens - tokens))
    launch = variant.launch(geometry, multiprocessors(device))
    sliced = launch.blocks[1] > 1
    partial = x.new_empty((geometry.spans, tokens, rows) if sliced else 0, dtype=torch.float32)
    kernel(variant, geometry.padded_cols)(
        launch, device, packed.blocks, packed.places, packed.records, x, bias, y, partial, rows, tokens
    )
    if sliced:
        combine = Launch((-(-tokens * rows // 256), 1), 256, overlap=True)
        _combine_kernel()(combine, device, partial, bias, y, rows, tokens * rows, geometry.spans)
