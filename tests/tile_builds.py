"""What tests of the product for many tokens share: the builds in the `fast` layout, and memory that held NaN."""

from __future__ import annotations

import torch

from tersor.kernels.fused.device import Matrix
from tersor.kernels.tile import device as tile
from tersor.kernels.tile.variant import ALONE, VARIANTS, WIDE, Build, fitting
from tersor.kernels.window.layout import Geometry

BUILDS = [build for size in VARIANTS for build in fitting(size, Geometry(16, 64))]
BUILDS += [*WIDE, ALONE]


def _rings(build: Build) -> tuple[object, ...]:
    """All but how many tokens there are."""
    own = {**vars(build), "tokens": build.tokens // build.copy_tokens}
    return type(build), *(own[name] for name in sorted(own))


# One of those that differ by their width alone; one of those that bring activations the same way.
DISTINCT = list({_rings(build): build for build in reversed(BUILDS)}.values())
FEW = list(
    {(type(b), b.cluster, b.tokens // b.copy_tokens, getattr(b, "turns", 1)): b for b in DISTINCT}.values()
)
# Every way in which hundreds of tokens are multiplied: by layouts, widths and kinds of exceptions one each.
MANY = [ALONE, *(b for b in WIDE if b.tokens in (80, 192, 240, 272, 304, 336))]
_PIECE = 8  # rows of y are allocated in whole pieces


def name_of(build: Build) -> str:
    """As a test is called."""
    return "-".join(f"{name[:2]}{value}" for name, value in vars(build).items() if value).replace(" ", "")


def poisoned(
    x: torch.Tensor, packed: Matrix[Geometry], build: Build | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product, in memory that held NaN: an output or a part that is not written shows."""
    tokens, rows, cols = x.shape[0], packed.geometry.rows, packed.geometry.cols
    width, parts = -(-rows // _PIECE) * _PIECE, 2 * 132 * 128 * WIDE[0].tokens
    for size in (tokens * width, parts, (tokens + 1024) * (cols + 64)):
        torch.full((size,), float("nan"), device="cuda", dtype=torch.bfloat16)
    y = tile.tile_linear(x, packed, bias, build)
    assert y.shape == (tokens, rows)
    assert y.is_contiguous()
    return y
