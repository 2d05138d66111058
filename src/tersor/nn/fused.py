"""A linear layer's weight in a layout that products read directly: no decoding, less to read.

`form_window` holds lossless weights, `form_spqr` quantised ones. A weight comes here from its
stored form (`Fused.of`), on the GPU, one at a time, and goes back to it to be saved; nothing is
stored on disk in such a layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.format.parameters import SpqrParameters
from tersor.kernels.spqr import layout as spqr
from tersor.nn.form_spqr import SpqrForm
from tersor.nn.form_window import WindowForm
from tersor.nn.forms import Arrays, Form
from tersor.nn.product import product
from tersor.nn.stored import Stored

_WINDOW_BITS = 11.7  # per weight at most, on trained weights
_OUTLIER_BITS = 32


def can_hold(source: object) -> bool:
    """Whether a weight can be held for fused products: a bfloat16 matrix, losslessly stored or on grids."""
    if not isinstance(source, Stored) or source.dtype != torch.bfloat16 or source.entry.dtype != "BF16":
        return False
    lossless = source.entry.codec == CODEC_HUFFMAN and len(source.shape) == 2
    return lossless or spqr.can_hold(source.entry)


def can_share(source: object) -> bool:
    """Whether it can be, and rows of it be read as those of an embedding."""
    return isinstance(source, Stored) and source.entry.codec == CODEC_HUFFMAN and can_hold(source)


def fused_bytes(entry: TensorEntry) -> float:
    """About how many bytes such a weight takes when it is held so."""
    geometry = spqr.held(entry)
    if geometry is None:
        return math.prod(entry.shape) * _WINDOW_BITS / 8
    assert isinstance(entry.parameters, SpqrParameters)
    heads = (spqr.RECORD_HEAD + 8 + 4) * geometry.records  # padding and places
    return geometry.stage_total + heads + entry.parameters.outliers * _OUTLIER_BITS / 8


@dataclass(frozen=True)
class Fused:
    """The parameter `name` (rows, cols) of a module, in `form`; `entry` tells what it is at rest.

    `exact`: products by decoding and torch's own product, bit for bit those of the plain layer;
    otherwise fused for few tokens, equal up to the order of summation. `kept`: stored arrays that
    the form cannot give back, in host memory.
    """

    name: str
    entry: TensorEntry
    dtype: torch.dtype
    form: Form
    exact: bool = False
    kept: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    held: tuple[str, ...] = field(
        init=False, compare=False, repr=False
    )  # the arrays' names in the module's state

    def __post_init__(self) -> None:
        """The names are asked for at every product."""
        object.__setattr__(self, "held", self._held())

    @classmethod
    def of(cls, module: nn.Module, source: Stored, exact: bool, unit: int | None = None) -> Fused:
        """Bring the weight that `source` reads from `module` into a layout for fused products, in its place.

        unit: for a quantised weight, a unit to use rather than its own (`form_spqr`).
        """
        form: Form
        kept: dict[str, Tensor] = {}
        if source.entry.codec == CODEC_HUFFMAN:
            form, arrays = WindowForm.pack(source.decode(module))  # first: memory may not suffice
            for name in source.held:
                del module._parameters[name]
        else:
            parts = source.parts(module)
            by_suffix = {name.removeprefix(source.name): part.detach() for name, part in parts.items()}
            form, arrays, kept = SpqrForm.pack(source.entry, by_suffix, unit)
            for name in parts:
                del module._parameters[name]
        made = cls(source.name, source.entry, source.dtype, form, exact, kept)
        made.attach(module, arrays)
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        """The original shape."""
        return self.entry.shape

    def _held(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{part}" for part in self.form.names)

    def cast(self, dtype: torch.dtype) -> Fused:
        """The same, decoding to `dtype`."""
        return replace(self, dtype=dtype)

    def arrays(self, module: nn.Module) -> Arrays:
        """The layout's arrays."""
        own: Mapping[str, Any] = (
            module._parameters
        )  # not where a replica has them; asking a module takes longer
        return tuple([own[name] if name in own else getattr(module, name) for name in self.held])

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

    def rows(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Rows of the weight: [n, cols] for int64 `rows` [n]."""
        if isinstance(self.form, WindowForm):
            return self.form.gather(self.arrays(module), rows).to(self.dtype)
        return self.decode(module)[rows]

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
        return product(self.form, x, self.arrays(module), bias, self.exact)

    def stored(self, module: nn.Module) -> tuple[Stored, dict[str, Tensor]]:
        """The weight's form at rest: how to read it, and its arrays by name, where the weight is."""
        parts = self.form.at_rest(self.arrays(module), self.entry, self.kept)
        device = self.device(module)
        named = {self.name + suffix: part.to(device) for suffix, part in parts.items()}
        return Stored(self.name, self.entry, self.dtype), named
