"""A linear layer's weight in a layout that products read directly: no decoding, less to read.

At rest and in the `compact` layout exponents are entropy coded, and a product must decode the
matrix to memory first. The `fast` layout (`tersor.kernels.window.layout`) spends 0.7 bit per
weight more and lets the product read the compressed weights themselves: at batch 1 it is faster
than the plain bfloat16 product, because it reads 11.4 bits where that reads 16.

A weight comes here from its stored form (`Fused.of`), on the GPU, one at a time, and goes
back to it to be saved; nothing is stored on disk in this layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn.forms import Arrays, Form, WindowForm
from tersor.nn.stored import Stored, part_names


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
class Fused:
    """The parameter `name` (rows, cols) of a module, in `form`; `entry` tells what it is at rest.

    `exact`: products by decoding and torch's own product, bit for bit those of the plain layer;
    otherwise fused for few tokens, equal up to the order of summation.
    """

    name: str
    entry: TensorEntry
    dtype: torch.dtype
    form: Form
    exact: bool = False

    @classmethod
    def of(cls, module: nn.Module, source: Stored, exact: bool) -> Fused:
        """Bring the weight that `source` reads from `module` into the `fast` layout, in its place."""
        form, arrays = WindowForm.pack(source.restore(module))
        made = cls(source.name, source.entry, source.dtype, form, exact)
        made.attach(module, arrays)
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        """The original shape."""
        return self.entry.shape

    @property
    def held(self) -> tuple[str, ...]:
        """The names, in the module's state, of what holds the weight now."""
        return tuple(f"{self.name}_{part}" for part in self.form.names)

    def cast(self, dtype: torch.dtype) -> Fused:
        """The same, decoding to `dtype`."""
        return replace(self, dtype=dtype)

    def arrays(self, module: nn.Module) -> Arrays:
        """The layout's arrays."""
        return tuple(getattr(module, name) for name in self.held)

    def attach(self, module: nn.Module, arrays: Arrays) -> None:
        """Make the arrays parameters of `module`."""
        for name, array in zip(self.held, arrays, strict=True):
            module.register_parameter(name, nn.Parameter(array, requires_grad=False))

    def detach(self, module: nn.Module) -> None:
        """Remove them."""
        for name in self.held:
            del module._parameters[name]

    def device(self, module: nn.Module) -> torch.device:
        """Where the weight is."""
        return self.arrays(module)[0].device

    def decode(self, module: nn.Module) -> Tensor:
        """The whole weight."""
        return self.form.decode(self.arrays(module)).to(self.dtype)

    def select(self, module: nn.Module, index: int) -> Tensor:
        """`weight[index]`."""
        return self.decode(module)[index]

    def restore(self, module: nn.Module) -> Tensor:
        """The whole weight, after removing the layout's arrays from `module`."""
        weight = self.decode(module)
        self.detach(module)
        return weight

    def multiplies(self, x: Tensor) -> bool:
        """Whether products with `x` may be fused."""
        return not self.exact and self.dtype == torch.bfloat16 and x.dtype == torch.bfloat16

    def linear(self, module: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., cols) -> (..., rows)."""
        if self.dtype != torch.bfloat16 or x.dtype != torch.bfloat16:
            return F.linear(x, self.decode(module), bias)
        return self.form.linear(x, self.arrays(module), bias, self.exact)

    def stored(self, module: nn.Module) -> tuple[Stored, dict[str, Tensor]]:
        """The weight's form at rest: how to read it, and its arrays by name."""
        at_rest = Stored(self.name, self.entry, self.dtype)
        tiles, offsets, book = torch.ops.tersor.huffman_encode(self.form.decode(self.arrays(module)))
        names = part_names(at_rest.name, at_rest.entry)
        return at_rest, dict(zip(names, (book, offsets, tiles), strict=True))
