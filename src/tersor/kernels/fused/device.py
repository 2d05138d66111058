"""Matrices in the layouts on the GPU: decode, multiply.

Bytes are uint8, everything of 16 bits int16 and of 32 bits int32 (torch computes little with unsigned types).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tersor.format.errors import KernelError
from tersor.kernels.compiler import Program
from tersor.kernels.fused.layout import SEGMENT_COLS, STRIP_ROWS, Geometry
from tersor.kernels.fused.variant import COMBINE, Variant, planned
from tersor.kernels.launcher import (
    BLOCK_SHARED,
    UNASKED_SHARED,
    Kernel,
    Launch,
    has_clusters,
    has_warpgroups,
    multiprocessors,
    shared_limit,
)

_DECODE_THREADS = 128
_DECODE_SHARED = STRIP_ROWS * (SEGMENT_COLS * 2 + 16)  # bytes of shared memory that decode.cu declares
_SHARED_GRAIN = 128  # what a block's bytes are rounded up to
_BESIDE = 6  # decoding blocks to a multiprocessor, where they work beside others
_COMBINE_THREADS = 128
_COMBINED = 4 * _COMBINE_THREADS  # outputs of a block

Kind = TypeVar("Kind", bound=Geometry, covariant=True)
Own = TypeVar("Own", bound=Geometry)
VariantFor = Callable[[int, Own, int, int], Variant]


@dataclass(frozen=True)
class Matrix(Generic[Kind]):
    """A matrix (geometry.rows, geometry.cols) in the layout of its geometry (`fused.layout`)."""

    geometry: Kind
    stages: Tensor  # uint8 (geometry.stage_total,)
    places: Tensor  # int32 (records + 1,)
    records: Tensor  # uint8 (16 * places[-1],)
    unit: int = 0  # the weights are in units of 2^unit

    @property
    def bits_per_weight(self) -> float:
        """Everything counted."""
        return self.geometry.bits_per_weight(self.records.numel())


@cache
def _decode_kernel(macros: tuple[tuple[str, int], ...]) -> Kernel:
    return Kernel(Program("decode.cu", "decode", macros))


@cache
def _combine_kernel() -> Kernel:
    return Kernel(COMBINE)


def elbow_room(limit: int) -> int:
    """Bytes of shared memory that a decoding block takes and does not use, where it works beside others.

    With it there are six to a multiprocessor, which keep an H200's memory as busy as thirteen, and small kernels need
    not wait for one to end. limit: bytes that a block may have, `shared_limit`. None where six hardly fit, and never
    so much that the launch would have to ask.
    """
    share = (limit + BLOCK_SHARED) // _BESIDE - BLOCK_SHARED
    spare = min(share, UNASKED_SHARED) - _DECODE_SHARED
    return max(0, spare // _SHARED_GRAIN * _SHARED_GRAIN)


def decode(matrix: Matrix[Geometry], out: Tensor | None = None) -> Tensor:
    """The bfloat16 matrix (rows, cols), bit for bit; written to `out`, contiguous, if given.

    What is given may be read on other streams: then the kernel does not begin while the one before it ends, and leaves
    room for theirs on every multiprocessor.
    """
    geometry, device, overlap = matrix.geometry, matrix.stages.device, out is None
    if out is None:
        out = matrix.stages.new_empty((geometry.rows, geometry.cols), dtype=torch.bfloat16)
    room = 0 if overlap else elbow_room(shared_limit(device))
    _decode_kernel(geometry.macros)(
        Launch((geometry.records, 1), _DECODE_THREADS, room, overlap=overlap), device,
        matrix.stages, matrix.places, matrix.records, out,
        geometry.rows, geometry.cols, geometry.halves, geometry.segments, matrix.unit,
    )  # fmt: skip
    return out


def linear(
    x: Tensor,
    matrix: Matrix[Own],
    bias: Tensor | None,
    most: int,
    variant_for: VariantFor[Own],
    wanted: Variant | None = None,
) -> Tensor:
    """x (tokens, cols) bfloat16 times the matrix transposed, plus bias (rows,): (tokens, rows) bfloat16.

    More tokens than `most` are multiplied in turns; every row of the result is the same either way. `variant_for`
    gives the build for (tokens, geometry, multiprocessors, bytes of shared memory), unless one is `wanted`.
    """
    geometry, tokens = matrix.geometry, x.shape[0]
    pad_cols = geometry.padded_cols - geometry.cols
    x = torch.nn.functional.pad(x, (0, pad_cols)) if pad_cols else x.contiguous()
    if x.data_ptr() % 16:  # a view into something larger; the kernel reads 16 bytes at a time
        x = x.clone()
    y = x.new_empty((tokens, geometry.rows))
    if 0 < tokens <= most:
        _multiply(variant_for, wanted, x, matrix, bias, y)
        return y
    for first in range(0, tokens, most):
        part = slice(first, min(first + most, tokens))
        _multiply(variant_for, wanted, x[part], matrix, bias, y[part])
    return y


@dataclass(frozen=True)
class Plan:
    """All of a launch that follows from sizes."""

    variant: Variant
    kernel: Kernel
    launch: Launch
    partial: int  # sums of a row, of spans or of quads, that another kernel puts together, if any
    combine: Launch


@lru_cache(maxsize=4096)  # asked at every product
def _planned(
    variant_for: VariantFor[Own], wanted: Variant | None, tokens: int, geometry: Own, device: torch.device
) -> Plan:
    variant = wanted or chosen(variant_for, tokens, geometry, device)
    plan = planned(variant, geometry, device)
    if wanted is None and variant.cluster > 1:
        alone = replace(variant, cluster=1)
        other = planned(alone, geometry, device)
        # A round more costs more than the second kernel.
        if other and (not plan or _rounds(variant, geometry, plan[1]) > _rounds(alone, geometry, other[1])):
            variant, plan = alone, other
    if plan is None:
        raise KernelError(f"{device} has no room for {variant}; leave the choice of a build to tersor")
    kernel, launch = plan
    quads = launch.blocks[1] // variant.cluster
    partial = 0 if quads == 1 else quads if variant.cluster > 1 else geometry.spans
    combined = Launch((-(-tokens * geometry.rows // _COMBINED), 1), _COMBINE_THREADS, overlap=True)
    return Plan(variant, kernel, launch, partial, combined)


def _rounds(variant: Variant, geometry: Geometry, launch: Launch) -> int:
    return variant.rounds(geometry, launch.blocks[0])


def chosen(variant_for: VariantFor[Own], tokens: int, geometry: Own, device: torch.device) -> Variant:
    """The build for this many tokens on this device."""
    build = variant_for(tokens, geometry, multiprocessors(device), shared_limit(device))
    if not has_warpgroups(device):
        build = replace(build, warpgroups=False)
    return clustered(build, geometry, device)


def clustered(variant: Variant, geometry: Geometry, device: torch.device) -> Variant:
    """The same with the blocks of a quad in a cluster, if they and the device can."""
    return variant.in_cluster(geometry, shared_limit(device)) if has_clusters(device) else variant


def _multiply(
    variant_for: VariantFor[Own],
    wanted: Variant | None,
    x: Tensor,
    matrix: Matrix[Own],
    bias: Tensor | None,
    y: Tensor,
) -> None:
    """One launch, for up to `variant.tokens` rows of `x`; the kernel reads whole rows, so few are padded."""
    geometry, device, tokens, rows = matrix.geometry, x.device, x.shape[0], matrix.geometry.rows
    plan = _planned(variant_for, wanted, tokens, geometry, device)
    if not plan.variant.slice_spans and tokens < plan.variant.tokens:
        x = torch.nn.functional.pad(x, (0, 0, 0, plan.variant.tokens - tokens))
    partial = x.new_empty((plan.partial, tokens, rows), dtype=torch.float32) if plan.partial else None
    plan.kernel(
        plan.launch, device, matrix.stages, matrix.places, matrix.records, x, bias, y, partial,
        rows, tokens, matrix.unit,
    )  # fmt: skip
    if partial is not None:
        _combine_kernel()(
            plan.combine, device, partial, bias, y,
            rows, tokens * rows, plan.partial, int(plan.variant.cluster > 1),
        )  # fmt: skip
