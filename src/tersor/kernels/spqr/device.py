"""The `spqr` layout on the GPU: decode, multiply. Activations' columns are in stored order."""

from __future__ import annotations

import torch

from tersor.kernels.fused import device as fused
from tersor.kernels.multiply import Ways
from tersor.kernels.spqr.linear import FUSED_TOKENS, MAX_TOKENS, TILED_TOKENS, variant_for
from tersor.kernels.tile import device as tile

decode = fused.decode


def fuses(tokens: int, device: torch.device) -> bool:
    """Whether `linear` is the fastest way to multiply this many tokens on this device."""
    return 0 < tokens <= FUSED_TOKENS or tile.fastest(tokens, device, TILED_TOKENS)


_ways = Ways(MAX_TOKENS, MAX_TOKENS, fuses, variant_for)
linear, multiply = _ways.linear, _ways.multiply
