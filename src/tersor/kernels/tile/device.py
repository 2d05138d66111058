"""The product for many tokens, launched: x W^T + bias for any layout that can be decoded by stages.

One kernel, chained to the one before by programmatic dependent launch: tiles that are cut between (clusters of)
blocks are put together by one of them. Nothing waits for the GPU, and nothing is allocated but torch's tensors; except
that a stream's first product may have to ask the driver for flags (flags.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from tersor.format.errors import KernelError
from tersor.kernels.compiler import Program
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.layout import EXCEPTION_BYTES, Geometry
from tersor.kernels.launcher import Kernel, Launch, has_warpgroups, multiprocessors, tensor_map
from tersor.kernels.tile.flags import flags
from tersor.kernels.tile.split import TILE_ROWS, Split, choose
from tersor.kernels.tile.variant import ALONE, Build, variant_for

_HALF_COLS = 64
_PIECE = 8  # elements of 16 bytes, at whose multiples rows begin for a tensor map


def supported(device: torch.device) -> bool:
    """Whether the device has the tensor cores that this product is written for."""
    return device.type == "cuda" and has_warpgroups(device)


def fastest(tokens: int, device: torch.device, most: int) -> bool:
    """Whether this product multiplies so many tokens faster than cuBLAS does after decoding; `most` by its layout."""
    return supported(device) and 0 < tokens <= most


@dataclass(frozen=True)
class Plan:
    """All of a product that follows from sizes: split, how and with what kernel."""

    variant: Build
    split: Split
    product: Kernel
    launch: Launch
    weight_shift: int  # the layout's operands are weights times 2^-weight_shift


@lru_cache(maxsize=1024)  # asked at every product
def planned(geometry: Geometry, tokens: int, kept: int, wanted: Build | None, device: torch.device) -> Plan:
    """The plan for so many tokens, on a GPU; `wanted`: a build other than the best."""
    variant = wanted or variant_for(tokens, geometry, multiprocessors(device))
    if not variant.fits(geometry):
        raise KernelError(f"{variant} has no room for {geometry}; leave the choice of a build to tersor")
    variant = variant.keeping(min(variant.kept, kept))
    blocks = variant.cluster
    shared = variant.shared(geometry)
    product = _kernel(variant.program(geometry), shared)
    places = multiprocessors(device) * variant.blocks_per_sm
    if blocks > 1:
        places = _clusters(product.program, Launch((blocks, 1), variant.threads, shared), device)
        if not places and wanted is None:  # part of a GPU
            return planned(geometry, tokens, kept, ALONE, device)
        if not places:
            raise KernelError(f"{device} has no room for {variant}; leave the choice of a build to tersor")
    split = choose(geometry.rows, tokens, -(-geometry.halves // 2), variant.tokens, places, variant.cluster)
    if split.units // split.chunk * split.clusters >= 1 << 32:
        raise KernelError(
            f"{tokens} tokens times {geometry.rows} x {geometry.cols} are too many for one product; take fewer"
        )
    return Plan(
        variant,
        split,
        product,
        Launch((split.clusters * blocks, 1), variant.threads, shared, overlap=True),
        dict(geometry.macros).get("WEIGHT_SHIFT", 0),
    )


@cache
def _kernel(program: Program, shared: int = 0) -> Kernel:
    return Kernel(program, shared)


@cache  # of the driver's answer, which does not depend on the matrix
def _clusters(program: Program, launch: Launch, device: torch.device) -> int:
    return _kernel(program, launch.shared).clusters(launch, device)


def tile_linear(
    x: torch.Tensor,
    matrix: Matrix[Geometry],
    bias: torch.Tensor | None = None,
    variant: Build | None = None,
) -> torch.Tensor:
    """x (tokens, cols) bfloat16, any row stride, times the matrix transposed, plus bias (rows,): (tokens, rows).

    The result does not depend on when blocks run; it does depend on `variant`, on how many tokens there are, and on how
    many blocks the GPU holds at a time.
    """
    geometry, tokens, device = matrix.geometry, x.shape[0], x.device
    kept = kept_for(geometry, matrix.places, matrix.records)
    plan = planned(geometry, tokens, kept, variant, device)
    split, exponent = plan.split, matrix.unit + plan.weight_shift
    pieces = in_pieces(x)
    width = -(-geometry.rows // _PIECE) * _PIECE  # rows of y begin at whole pieces too
    y = x.new_empty((tokens, width))
    if width > geometry.rows:
        y = y[:, : geometry.rows]
    partial = raised = None
    if split.cuts:
        blocks = plan.launch.blocks[0]
        partial = x.new_empty(blocks * TILE_ROWS * plan.variant.tokens, dtype=torch.float32)
        raised = flags(blocks * plan.variant.consumers, device)
    plan.product(
        plan.launch, device, matrix.stages, matrix.places, matrix.records,
        tensor_map(pieces, plan.variant.copy_tokens, _HALF_COLS),
        tensor_map(y, plan.variant.stored_tokens, _HALF_COLS),
        bias, partial, raised, geometry.rows, tokens, geometry.halves, split.chunk, split.period, exponent,
    )  # fmt: skip
    return y if width == geometry.rows else y.contiguous()


def kept_for(geometry: Geometry, places: torch.Tensor, records: torch.Tensor) -> int:
    """Exceptions that a lane must hold (1, 2 or 4) for nearly all segments, if they are spread evenly.

    Rows of a joint matrix come with all of its records, and with a view of all places, which tells how many.
    """
    return _kept(geometry, places.untyped_storage().nbytes() // places.itemsize - 1, records.numel())


@lru_cache(maxsize=4096)  # asked at every product
def _kept(geometry: Geometry, number: int, nbytes: int) -> int:
    head = dict(geometry.macros)["RECORD_HEAD"]
    mean = max(0.0, nbytes / number - head) / EXCEPTION_BYTES
    return next((kept for kept in (1, 2) if mean + 3 * mean**0.5 <= 32 * kept), 4)


def in_pieces(x: torch.Tensor) -> torch.Tensor:
    """x in rows of whole pieces of 16 bytes, each at a multiple of 16, as bulk copies want it.

    Itself nearly always, else a copy.
    """
    if over := x.shape[1] % _PIECE:
        return torch.nn.functional.pad(x, (0, _PIECE - over))
    apart = x.shape[0] == 1 or (x.stride(0) >= x.shape[1] and x.stride(0) % _PIECE == 0)
    if x.stride(1) != 1 or not apart or x.data_ptr() % 16:
        return x.clone(memory_format=torch.contiguous_format)
    return x
