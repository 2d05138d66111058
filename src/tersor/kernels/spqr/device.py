"""The `spqr` layout on the GPU: multiply."""

from __future__ import annotations

from torch import Tensor

from tersor.kernels.fused import device as fused
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.variant import Variant
from tersor.kernels.spqr.layout import Geometry
from tersor.kernels.spqr.linear import MAX_TOKENS, variant_for

decode = fused.decode


def linear(
    x: Tensor, matrix: Matrix[Geometry], bias: Tensor | None = None, variant: Variant | None = None
) -> Tensor:
    """x (tokens, cols) bfloat16, columns in stored order: (tokens, rows), by `fused.device.linear`."""
    most = variant.tokens if variant else MAX_TOKENS

    def choose(tokens: int, multiprocessors: int, shared: int) -> Variant:
        return variant or variant_for(tokens, matrix.geometry, multiprocessors, shared)

    return fused.linear(x, matrix, bias, most, choose)
