"""Small models whose layers decode ahead, and what is asked of them: for the tests of `tersor.nn.ahead`."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn import compress, lay_out
from tersor.nn.ahead import Ahead

HIDDEN = 96


def linear(rows: int = HIDDEN, cols: int = HIDDEN, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    return nn.Linear(cols, rows, dtype=dtype)


class Block(nn.Module):
    """Layers one after the other, one of them in a module of its own; `skip` leaves one out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(72), linear(HIDDEN, 72)
        self.inner = nn.Sequential(linear())

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """(..., HIDDEN) -> the same."""
        x = torch.tanh(self.second(self.first(x)))
        return x if skip else x + self.inner(x)


class Model(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = linear(40)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """(..., HIDDEN) -> (..., 40)."""
        for block in self.blocks:
            x = block(x, skip)
        out: Tensor = self.head(x)
        return out


class Operators(TorchDispatchMode):
    """Counts tersor's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tersor":
            self.count[func._opname] += 1
        return func(*args, **(kwargs or {}))


def pair(model: nn.Module, layout: Any = "compact") -> tuple[Any, Any]:
    """The model compressed and laid out, for exact products, and its plain twin."""
    plain = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            tiles, offsets, book = torch.ops.tersor.huffman_encode(module.weight)
            parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
            kind = {torch.bfloat16: "BF16", torch.float16: "F16"}[module.weight.dtype]
            entry = TensorEntry(CODEC_HUFFMAN, kind, tuple(module.weight.shape), "0" * 64)
            compress(module, "weight", entry, parts)
    lay_out(model, layout, exact=True, device_type="cpu")
    return model, plain


def aheads(model: nn.Module) -> list[Ahead]:
    return [ahead for module in model.modules() for ahead in module.__dict__.get("shared_in_call", ())]


def idle(model: nn.Module) -> bool:
    """Whether nothing decoded is left anywhere."""
    return all(ahead.call is None for ahead in aheads(model))


ALONE = {"compact": "huffman_decode", "fast": "window_linear"}
AHEAD = {"compact": "huffman_decode_to", "fast": "window_decode_to"}
layouts = pytest.mark.parametrize("layout", ["compact", "fast"])
