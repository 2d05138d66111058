"""A block decoded in one launch on a GPU: the plain layers' bits, captured too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn import compress, lay_out
from tersor.nn.ahead import Batch

pytestmark = pytest.mark.gpu


class Block(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": False, "dtype": torch.bfloat16, "device": "cuda"}
        self.gate_proj = nn.Linear(1024, 3000, **options)
        self.up_proj = nn.Linear(1024, 3000, **options)
        self.down_proj = nn.Linear(3000, 1024, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 1024) -> the same."""
        return x + self.down_proj(torch.tanh(self.gate_proj(x)) * self.up_proj(x))


@torch.inference_mode()
def test_a_block_in_one_launch() -> None:
    plain = nn.Sequential(nn.ModuleList([Block(), Block()]))
    model = copy.deepcopy(plain)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            tiles, offsets, book = torch.ops.tersor.huffman_encode(module.weight)
            parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
            entry = TensorEntry(CODEC_HUFFMAN, "BF16", tuple(module.weight.shape), "0" * 64)
            compress(module, "weight", entry, parts)
    lay_out(model, "compact")
    ours, theirs = list(model[0]), list(plain[0])  # type: ignore[arg-type]
    assert all(
        len(b.members) == 3 for block in ours for b in block.__dict__["batches"] if isinstance(b, Batch)
    )
    for tokens in (1, 40):
        x = torch.randn(tokens, 1024, device="cuda", dtype=torch.bfloat16)
        assert torch.equal(ours[1](ours[0](x)), theirs[1](theirs[0](x)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ours[1](ours[0](x))
    y.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, theirs[1](theirs[0](x)))
