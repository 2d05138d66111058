"""Compressing a module's parameter in memory, without files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.layout import BOOK, OFFSETS, TILES
from tersor.format.manifest import TensorEntry
from tersor.kernels import ops
from tersor.nn import compress

Compress = Callable[..., nn.Module]


@pytest.fixture
def compressed() -> Compress:
    """Compress the named parameters (default: weight) of a module in place, and return it."""

    def run(module: nn.Module, *names: str) -> nn.Module:
        for name in names or ("weight",):
            weight = module.get_parameter(name).detach()
            sha256 = hashlib.sha256(weight.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
            entry = TensorEntry(
                CODEC_HUFFMAN, ops.safetensors_dtype(weight.dtype), tuple(weight.shape), sha256
            )
            tiles, offsets, book = torch.ops.tersor.huffman_encode(weight)
            compress(module, name, entry, {name + TILES: tiles, name + OFFSETS: offsets, name + BOOK: book})
        return module

    return run
