"""The `spqr` layout on the GPU: multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.fused import device as fused
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.variant import Variant
from tersor.kernels.spqr.layout import Geometry
from tersor.kernels.spqr.linear import FUSED_TOKENS, MAX_TOKENS, variant_for
from tersor.kernels.tile import device as tile

decode = fused.decode


def fuses(tokens: int, device: torch.device) -> bool:
    """Whether `linear` is the fastest way to multiply this many tokens on this device."""
    return 0 < tokens <= FUSED_TOKENS or (tokens > 0 and tile.supported(device))


def linear(
    x: Tensor, matrix: Matrix[Geometry], bias: Tensor | None = None, variant: Variant | None = None
) -> Tensor:
    """x (tokens, cols) bfloat16, columns in stored order: (tokens, rows), on Hopper by `tile` for many tokens."""
    if variant is None and x.shape[0] > MAX_TOKENS and tile.supported(x.device):
        return tile.tile_linear(x, matrix, bias)
    most = variant.tokens if variant else MAX_TOKENS

    def choose(tokens: int, multiprocessors: int, shared: int) -> Variant:
        return variant or variant_for(tokens, matrix.geometry, multiprocessors, shared)

    return fused.linear(x, matrix, bias, most, choose)
