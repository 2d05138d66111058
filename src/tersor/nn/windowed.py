"""A linear layer's weight in the `fast` layout: the same bits, placed so that a GPU multiplies from them.

At rest and in the `compact` layout exponents are entropy coded, and a product must decode the
matrix to memory first. The `fast` layout (`tersor.kernels.window.layout`) spends 0.7 bit per
weight more and lets the product read the compressed weights themselves: at batch 1 it is faster
than the plain bfloat16 product, because it reads 11.4 bits where that reads 16.

A weight comes here from its stored form (`Windowed.of`), on the GPU, one at a time, and goes
back to it to be saved; nothing is stored on disk in this layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.kernels.window import ops  # noqa: F401  (defines the operators)
from tersor.nn.stored import Stored

BLOCKS, PLACES, RECORDS = "_blocks", "_places", "_records"


def can_hold(source: object) -> bool:
    """Whether a weight can be held in the `fast` layout: a bfloat16 matrix, losslessly stored."""
    return (
        isinstance(source, Stored)
        and source.entry.codec == CODEC_HUFFMAN
        and source.dtype == torch.bfloat16
        and source.entry.dtype == "BF16"
        and len(source.shape) == 2
    )


@dataclass(frozen=True)
class Windowed:
    """The parameter `name` (rows, cols) of a module in the `fast` layout; `entry` tells what it is at rest.

    `exact`: products by decoding and torch's own product, bit for bit those of the plain layer;
    otherwise fused for few tokens, equal up to the order of summation.
    """

    name: str
    entry: TensorEntry
    dtype: torch.dtype
    exact: bool = False

    @classmethod
    def of(cls, module: nn.Module, source: Stored, exact: bool) -> Windowed:
        """Bring the weight that `source` reads from `module` into the `fast` layout, in its place."""
        parts = torch.ops.tersor.window_pack(source.restore(module))
        for suffix, part in zip((BLOCKS, PLACES, RECORDS), parts, strict=True):
            module.register_parameter(source.name + suffix, nn.Parameter(part, requires_grad=False))
        return cls(source.name, source.entry, source.dtype, exact)

    @property
    def shape(self) -> tuple[int, ...]:
        """The original shape."""
        return self.entry.shape

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parameters that hold the weight now."""
        return self.name + BLOCKS, self.name + PLACES, self.name + RECORDS

    def cast(self, dtype: torch.dtype) -> Windowed:
        """The same, decoding to `dtype`."""
        return replace(self, dtype=dtype)

    def device(self, module: nn.Module) -> torch.device:
        """Where the weight is."""
        return module.get_parameter(self.part_names[0]).device

    def decode(self, module: nn.Module) -> Tensor:
        """The whole weight."""
        decoded: Tensor = torch.ops.tersor.window_decode(*self._parts(module), *self.shape)
        return decoded.to(self.dtype)

    def select(self, module: nn.Module, index: int) -> Tensor:
        """`weight[index]`."""
        return self.decode(module)[index]

    def restore(self, module: nn.Module) -> Tensor:
        """The whole weight, after removing the layout's arrays from `module`."""
        weight = self.decode(module)
        for name in self.part_names:
            del module._parameters[name]
        return weight

    def linear(self, module: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., cols) -> (..., rows)."""
        if self.dtype != torch.bfloat16 or x.dtype != torch.bfloat16:
            return F.linear(x, self.decode(module), bias)
        product: Tensor = torch.ops.tersor.window_linear(
            x, *self._parts(module), bias, *self.shape, self.exact
        )
        return product

    def stored(self, module: nn.Module) -> tuple[Stored, tuple[Tensor, Tensor, Tensor]]:
        """The weight's form at rest: how to read it, and (book, offsets, tiles)."""
        tiles, offsets, book = torch.ops.tersor.huffman_encode(self.decode(module))
        return Stored(self.name, self.entry, self.dtype), (book, offsets, tiles)

    def _parts(self, module: nn.Module) -> tuple[Tensor, ...]:
        return tuple(getattr(module, name) for name in self.part_names)
