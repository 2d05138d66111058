"""What tests of the product for many tokens share: the builds in the `fast` layout, and memory that held NaN."""

from __future__ import annotations

import torch

from tersor.kernels.fused.device import Matrix
from tersor.kernels.tile import device as tile
from tersor.kernels.tile.variant import VARIANTS, WIDE, Build, ClusterVariant, fitting
from tersor.kernels.window.layout import Geometry

BUILDS = [build for size in VARIANTS for build in fitting(size, Geometry(16, 64))]
# Of clusters of four nobody is launched unasked.
BUILDS += [*WIDE, ClusterVariant(192, 4, 4, 3), ClusterVariant(256, 4, 3, 3)]
_PIECE = 8  # rows of y are allocated in whole pieces


def name_of(build: Build) -> str:
    """As a test is called."""
    return "-".join(f"{name[:2]}{value}" for name, value in vars(build).items() if value).replace(" ", "")


def poisoned(
    x: torch.Tensor, packed: Matrix[Geometry], build: Build | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product, in memory that held NaN: an output or a part that is not written shows."""
    tokens, rows, cols = x.shape[0], packed.geometry.rows, packed.geometry.cols
    width, parts = -(-rows // _PIECE) * _PIECE, 2 * 132 * 128 * 256
    for size in (tokens * width, parts, (tokens + 1024) * (cols + 64)):
        torch.full((size,), float("nan"), device="cuda", dtype=torch.bfloat16)
    y = tile.tile_linear(x, packed, bias, build)
    assert y.shape == (tokens, rows)
    assert y.is_contiguous()
    return y
