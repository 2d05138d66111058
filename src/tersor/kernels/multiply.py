"""Which way a product takes, given how many tokens there are: one answer for every layout.

    few tokens                `fused.linear`, straight from the layout; more than one launch takes, in turns
    many, on Hopper           `tile.tile_linear`, from the layout into shared memory
    more than `fuses` takes   the matrix is decoded, and torch multiplies

A layout says where its borders are (`Ways`), because they are measured, and a layout of fewer bits has others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tersor.kernels.fused import device as fused
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.layout import Geometry
from tersor.kernels.fused.variant import Variant
from tersor.kernels.tile import device as tile

Own = TypeVar("Own", bound=Geometry)


@dataclass(frozen=True)
class Ways(Generic[Own]):
    """A layout's borders.

    most: tokens of one launch of the fused product; tile_beyond: more tokens than these, on Hopper, are multiplied
    by `tile`; fuses: whether so many tokens on such a device are multiplied faster from the layout than by decoding
    the matrix; variant_for: the fused product's build for (tokens, geometry, multiprocessors, bytes of shared memory).
    """

    most: int
    tile_beyond: int
    fuses: Callable[[int, torch.device], bool]
    variant_for: Callable[[int, Own, int, int], Variant]

    def linear(
        self, x: Tensor, matrix: Matrix[Own], bias: Tensor | None = None, variant: Variant | None = None
    ) -> Tensor:
        """x (tokens, cols) bfloat16: (tokens, rows) from the layout, by this build of the fused product if given."""
        if variant is None and x.shape[0] > self.tile_beyond and tile.supported(x.device):
            return tile.tile_linear(x, matrix, bias)

        most = variant.tokens if variant else self.most
        return fused.linear(x, matrix, bias, most, self.variant_for, variant)

    def multiply(self, x: Tensor, matrix: Matrix[Own], bias: Tensor | None, exact: bool = False) -> Tensor:
        """x (..., cols) of any dtype: (..., rows); decoded if `exact`, and where x or bias is not bfloat16."""
        flat = x.reshape(-1, matrix.geometry.cols)
        plain = bias is None or (bias.dtype == torch.bfloat16 and bias.shape == (matrix.geometry.rows,))
        if exact or x.dtype != torch.bfloat16 or not plain or not self.fuses(flat.shape[0], x.device):
            return torch.nn.functional.linear(x, fused.decode(matrix).to(x.dtype), bias)
        y = self.linear(flat, matrix, bias if bias is None else bias.contiguous())
        return y.view(*x.shape[:-1], matrix.geometry.rows)
