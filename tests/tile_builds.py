"""What tests of the product for many tokens share: the builds in the `fast` layout, and memory that held NaN."""

from __future__ import annotations

import pytest
import torch

from tersor.format.errors import KernelError
from tersor.kernels.fused.device import Matrix
from tersor.kernels.tile import device as tile
from tersor.kernels.tile.variant import ALONE, VARIANTS, WIDE, Build, fitting
from tersor.kernels.window.layout import Geometry

BUILDS = [build for size in VARIANTS for build in fitting(size, Geometry(16, 64))]
BUILDS += [*WIDE, ALONE]


def _rings(build: Build) -> tuple[object, ...]:
    """All but how many tokens there are, and what follows from that."""
    own = {**vars(build), "tokens": _parts(build)}
    return type(build), *(own[name] for name in sorted(own))


def _parts(build: Build) -> tuple[int, int]:
    """Of a tile's tokens: those that come one after another, and those that go."""
    return -(-build.tokens // build.copy_tokens), -(-build.tokens // build.stored_tokens)


# One of those that differ by their width alone; one of those that bring activations the same way.
DISTINCT = list({_rings(build): build for build in reversed(BUILDS)}.values())
FEW = list({(type(b), b.cluster, _parts(b), getattr(b, "turns", 1)): b for b in DISTINCT}.values())
# Every way in which hundreds of tokens are multiplied: by layouts, widths and kinds of exceptions one each.
MANY = [ALONE, *(b for b in WIDE if b.tokens in (80, 176, 192, 240, 264, 272, 304, 336))]
_PIECE = 8  # rows of y are allocated in whole pieces


def name_of(build: Build) -> str:
    """As a test is called."""
    return "-".join(f"{name[:2]}{value}" for name, value in vars(build).items() if value).replace(" ", "")


def refused(build: Build, packed: Matrix[Geometry]) -> bool:
    """Whether the build is not for this matrix; then it must say so."""
    if build.fits(packed.geometry):
        return False
    x = torch.zeros(2, packed.geometry.cols, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(KernelError, match="no room"):
        tile.tile_linear(x, packed, None, build)
    return True


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
