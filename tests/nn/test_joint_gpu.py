"""Siblings multiplied as one on a GPU: exact is the plain layers' bits, a graph captures one product."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn import compress, lay_out
from tersor.nn.joint import Joint

pytestmark = pytest.mark.gpu

HIDDEN, HEIGHTS = 4096, (4096, 1024, 1024)


class Attention(nn.Module):
    """Three projections of one input."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        for name, rows in zip(("q_proj", "k_proj", "v_proj"), HEIGHTS, strict=True):
            self.add_module(name, nn.Linear(HIDDEN, rows, bias=bias, dtype=torch.bfloat16, device="cuda"))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q, k, v."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


def pair(bias: bool, exact: bool) -> tuple[Any, Attention]:
    plain = Attention(bias)
    module = copy.deepcopy(plain)
    for child in module.children():
        tiles, offsets, book = torch.ops.tersor.huffman_encode(child.weight)
        parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
        compress(
            child, "weight", TensorEntry(CODEC_HUFFMAN, "BF16", tuple(child.weight.shape), "0" * 64), parts
        )
    lay_out(module, "fast", exact)
    assert isinstance(module.q_proj.joint, Joint)
    return module, plain


@pytest.mark.parametrize("tokens", [1, 5, 64, 65, 300])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_exact_is_what_the_plain_layers_give(bias: bool, tokens: int) -> None:
    module, plain = pair(bias, exact=True)
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(module(x), plain(x), strict=True))


@pytest.mark.parametrize("tokens", [1, 2, 8])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_together_and_apart_are_the_same_bits(bias: bool, tokens: int) -> None:
    module, plain = pair(bias, exact=False)
    x = torch.randn(1, tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
    together = module(x)
    assert module.q_proj.joint.together
    module.q_proj.joint.together = False
    for a, b, reference in zip(together, module(x), plain(x), strict=True):
        assert torch.equal(a, b) and a.is_contiguous()
        torch.testing.assert_close(a, reference, rtol=2e-2, atol=2e-2)
    assert torch.equal(module.k_proj.weight.clone(), plain.k_proj.weight)


@torch.inference_mode()
def test_a_graph_captures_it() -> None:
    module, _ = pair(bias=True, exact=False)
    x = torch.randn(1, 1, HIDDEN, device="cuda", dtype=torch.bfloat16)
    expected = [y.clone() for y in module(x)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = module(x)
    for y in captured:
        y.fill_(float("nan"))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    assert module.q_proj.joint.ready is None


@torch.inference_mode()
def test_inductor_compiles_it_whole() -> None:
    module, _ = pair(bias=False, exact=False)
    x = torch.randn(1, 1, HIDDEN, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(module, fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(compiled(x), module(x), strict=True))
