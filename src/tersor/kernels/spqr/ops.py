"""The torch operators of the `spqr` layout (`tersor.kernels.spqr.layout`), for bfloat16 weights.

    spqr_pack(codes, levels, stats, counts, places, deltas, shape, bits, group, rows, stat_bits)
                                                            -> stages, places, records
    spqr_decode(stages, places, records, order, rows, cols, bits, group, levels, unit)    -> (rows, cols)
    spqr_linear(x, stages, places, records, order, bias, rows, cols, bits, group, levels, unit) -> (..., rows)

`spqr_pack` takes the arrays and parameters of FORMAT.md section 6 (`group` the stored one); the other two what
`layout.held` tells of the same tensor: `bits`, `group` and `levels` of its geometry. `order` is the stored column
order as int32 (cols,), or None. Decoding gives FORMAT.md's bits. `spqr_linear` on a GPU multiplies straight from
the layout: up to MAX_TOKENS tokens with the same sums in the same order for every batch size, on Hopper up to
TILED_TOKENS with others, elsewhere up to FUSED_TOKENS. More tokens, activations that are not bfloat16, and the CPU
decode the matrix and let torch multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.kernels.fused.device import Matrix
from tersor.kernels.spqr import device, packing, reference
from tersor.kernels.spqr.layout import Geometry

_library = torch.library.Library("tersor", "FRAGMENT")  # type: ignore[no-untyped-call]
_PACKED = "Tensor stages, Tensor places, Tensor records"
_HELD = "int rows, int cols, int bits, int group, int levels, int unit"
for _schema in (
    "spqr_pack(Tensor codes, Tensor? levels, Tensor stats, Tensor? counts, Tensor? places, Tensor? deltas, "
    f"int[] shape, int bits, int group, int rows, int stat_bits) -> ({_PACKED})",
    f"spqr_decode({_PACKED}, Tensor? order, {_HELD}) -> Tensor",
    f"spqr_linear(Tensor x, {_PACKED}, Tensor? order, Tensor? bias, {_HELD}) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


def _matrix(stages: Tensor, places: Tensor, records: Tensor, *held: int) -> Matrix[Geometry]:
    """What the operators' arguments describe; held: the numbers of `_HELD`."""
    *geometry, unit = held
    return Matrix(Geometry(*geometry), stages, places, records, unit)


def _ordered(weight: Tensor, order: Tensor | None) -> Tensor:
    """Columns back from stored order to their own."""
    return weight if order is None else torch.empty_like(weight).index_copy_(1, order.long(), weight)


def _decode_cpu(stages: Tensor, places: Tensor, records: Tensor, order: Tensor | None, *held: int) -> Tensor:
    m = _matrix(stages, places, records, *held)
    packed = reference.Packed(m.geometry, m.unit, stages.numpy(), places.numpy(), records.numpy())
    return _ordered(torch.from_numpy(np.ascontiguousarray(reference.unpack(packed))).bfloat16(), order)


def _decode_cuda(stages: Tensor, places: Tensor, records: Tensor, order: Tensor | None, *held: int) -> Tensor:
    return _ordered(device.decode(_matrix(stages, places, records, *held)), order)


def _decode_fake(
    stages: Tensor, places: Tensor, records: Tensor, order: Tensor | None, rows: int, cols: int, *_: int
) -> Tensor:
    return stages.new_empty((rows, cols), dtype=torch.bfloat16)


def _linear_cpu(
    x: Tensor,
    stages: Tensor,
    places: Tensor,
    records: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    *held: int,
) -> Tensor:
    weight = _decode_cpu(stages, places, records, order, *held)
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias)


def _linear_cuda(
    x: Tensor,
    stages: Tensor,
    places: Tensor,
    records: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    *held: int,
) -> Tensor:
    if order is not None:
        x = x.index_select(-1, order)
    return device.multiply(x, _matrix(stages, places, records, *held), bias)


def _linear_fake(
    x: Tensor,
    stages: Tensor,
    places: Tensor,
    records: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    rows: int,
    *_: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _pack_cuda(*stored: Any) -> tuple[Tensor, Tensor, Tensor]:
    parts = packing.pack(*stored)
    # Before a kernel that overlaps its predecessor may read them.
    torch.cuda.current_stream(parts[0].device).synchronize()
    return parts


def _pack_fake(
    codes: Tensor,
    levels: Tensor | None,
    stats: Tensor,
    counts: Tensor | None,
    places: Tensor | None,
    deltas: Tensor | None,
    shape: Sequence[int],
    bits: int,
    group: int,
    rows: int,
    stat_bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = packing.geometry_for(shape, bits, group, rows, stat_bits)
    size = torch.library.get_ctx().new_dynamic_size()
    return (
        codes.new_empty(geometry.stage_total, dtype=torch.uint8),
        codes.new_empty(geometry.records + 1, dtype=torch.int32),
        codes.new_empty((size,), dtype=torch.uint8),
    )


for _name, _cpu, _cuda, _fake in (
    ("spqr_pack", packing.pack, _pack_cuda, _pack_fake),
    ("spqr_decode", _decode_cpu, _decode_cuda, _decode_fake),
    ("spqr_linear", _linear_cpu, _linear_cuda, _linear_fake),
):
    _library.impl(_name, _cpu, "CPU")  # type: ignore[no-untyped-call]
    _library.impl(_name, _cuda, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"tersor::{_name}", _fake, lib=_library)
