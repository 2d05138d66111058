"""The torch operators of the `fast` layout (`tersor.kernels.window.layout`), for bfloat16 matrices.

    window_pack(weight)                                   -> blocks, places, records
    window_decode(blocks, places, records, rows, cols)    -> (rows, cols)
    window_decode_to(blocks, places, records, out)        the same into `out` (rows, cols), contiguous
    window_linear(x, blocks, places, records, bias, rows, cols, exact) -> (..., rows)

`window_linear` on a GPU multiplies straight from the layout, near to cuBLAS's result but not equal to its last
bit. For few tokens (up to TILE_TOKENS on Hopper, FUSED_TOKENS elsewhere) it makes the same sums in the same
order for every batch size, on Hopper for up to TILED_TOKENS others. More tokens, `exact` and the CPU decode the matrix
and let torch multiply, which is what the uncompressed layer does.
"""

from __future__ import annotations

import numpy as np
import torch

from tersor.kernels.destination import check_destination
from tersor.kernels.fused.device import Matrix
from tersor.kernels.window import device, reference
from tersor.kernels.window.layout import Geometry

_library = torch.library.Library("tersor", "FRAGMENT")  # type: ignore[no-untyped-call]
_PACKED = "Tensor blocks, Tensor places, Tensor records"
for _schema in (
    f"window_pack(Tensor weight) -> ({_PACKED})",
    f"window_decode({_PACKED}, int rows, int cols) -> Tensor",
    f"window_decode_to({_PACKED}, Tensor(a!) out) -> ()",
    f"window_linear(Tensor x, {_PACKED}, Tensor? bias, int rows, int cols, bool exact) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


def _pack_cpu(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    window = reference.pack(weight.detach().contiguous().view(torch.int16).numpy().view(np.uint16))
    parts = (window.blocks, window.places, window.records)
    blocks, places, records = (torch.from_numpy(part.copy()) for part in parts)
    return blocks, places, records


def _pack_cuda(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    packed = device.pack(weight)
    return packed.stages, packed.places, packed.records


def _decode_cpu(
    blocks: torch.Tensor, places: torch.Tensor, records: torch.Tensor, rows: int, cols: int
) -> torch.Tensor:
    window = reference.Window(rows, cols, blocks.numpy(), places.numpy(), records.numpy())
    return torch.from_numpy(reference.unpack(window).view(np.int16)).view(torch.bfloat16)


def _decode_cuda(
    blocks: torch.Tensor, places: torch.Tensor, records: torch.Tensor, rows: int, cols: int
) -> torch.Tensor:
    return device.decode(Matrix(Geometry(rows, cols), blocks, places, records))


def _decode_to_cpu(
    blocks: torch.Tensor, places: torch.Tensor, records: torch.Tensor, out: torch.Tensor
) -> None:
    geometry = _geometry_of(out, blocks, places)
    out.copy_(_decode_cpu(blocks, places, records, geometry.rows, geometry.cols))


def _decode_to_cuda(
    blocks: torch.Tensor, places: torch.Tensor, records: torch.Tensor, out: torch.Tensor
) -> None:
    device.decode(Matrix(_geometry_of(out, blocks, places), blocks, places, records), out)


def _geometry_of(out: torch.Tensor, blocks: torch.Tensor, places: torch.Tensor) -> Geometry:
    """Of the matrix that is to be written to `out`; UsageError if it cannot be."""
    geometry = Geometry(*(out.shape if out.dim() == 2 else (0, 0)))
    fits = blocks.numel() == geometry.stage_total and places.numel() == geometry.records + 1
    check_destination("window_decode_to", out, torch.bfloat16, fits and out.dim() == 2)
    return geometry


def _linear_cpu(
    x: torch.Tensor,
    blocks: torch.Tensor,
    places: torch.Tensor,
    records: torch.Tensor,
    bias: torch.Tensor | None,
    rows: int,
    cols: int,
    exact: bool,
) -> torch.Tensor:
    return torch.nn.functional.linear(x, _decode_cpu(blocks, places, records, rows, cols), bias)


def _linear_cuda(
    x: torch.Tensor,
    blocks: torch.Tensor,
    places: torch.Tensor,
    records: torch.Tensor,
    bias: torch.Tensor | None,
    rows: int,
    cols: int,
    exact: bool,
) -> torch.Tensor:
    return device.multiply(x, Matrix(Geometry(rows, cols), blocks, places, records), bias, exact)


def _pack_fake(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    geometry = Geometry(weight.shape[0], weight.shape[1])
    blocks = weight.new_empty(geometry.stage_total, dtype=torch.uint8)
    places = weight.new_empty(geometry.records + 1, dtype=torch.int32)
    size = torch.library.get_ctx().new_dynamic_size()
    return blocks, places, weight.new_empty((size,), dtype=torch.uint8)


def _decode_fake(
    blocks: torch.Tensor, places: torch.Tensor, records: torch.Tensor, rows: int, cols: int
) -> torch.Tensor:
    return blocks.new_empty((rows, cols), dtype=torch.bfloat16)


def _decode_to_fake(
    blocks: torch.Tensor, places: torch.Tensor, records: torch.Tensor, out: torch.Tensor
) -> None:
    pass


def _linear_fake(
    x: torch.Tensor,
    blocks: torch.Tensor,
    places: torch.Tensor,
    records: torch.Tensor,
    bias: torch.Tensor | None,
    rows: int,
    cols: int,
    exact: bool,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], rows))


for _name, _cpu, _cuda, _fake in (
    ("window_pack", _pack_cpu, _pack_cuda, _pack_fake),
    ("window_decode", _decode_cpu, _decode_cuda, _decode_fake),
    ("window_decode_to", _decode_to_cpu, _decode_to_cuda, _decode_to_fake),
    ("window_linear", _linear_cpu, _linear_cuda, _linear_fake),
):
    _library.impl(_name, _cpu, "CPU")  # type: ignore[no-untyped-call]
    _library.impl(_name, _cuda, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"tersor::{_name}", _fake, lib=_library)
