"""Attention of a decode step, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tersor.kernels.attention import device
from tersor.kernels.attention import ops as ops

SHAPES = ((32, 8, 128), (9, 3, 64), (4, 4, 64), (8, 1, 128), (6, 6, 128))


def inputs(heads: int, kv_heads: int, dim: int, capacity: int, where: str) -> tuple[torch.Tensor, ...]:
    """Random q, keys and values; beyond what is filled the caches hold what must not be read as numbers."""
    torch.manual_seed(heads + capacity)
    q = torch.randn(1, heads, 1, dim).bfloat16()
    keys, values = (torch.randn(1, kv_heads, capacity, dim).bfloat16() for _ in range(2))
    return q.to(where), keys.to(where), values.to(where)


def exact(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, filled: int) -> torch.Tensor:
    """In float64, over the filled part."""
    group = q.shape[1] // keys.shape[1]
    k, v = (x[:, :, :filled].double().repeat_interleave(group, dim=1) for x in (keys, values))
    return scaled_dot_product_attention(q.double(), k, v)


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("filled", [1, 2, 7, 64, 65, 500, 777])
def test_against_float64(where: str, shape: tuple[int, int, int], filled: int) -> None:
    """Right to bfloat16's rounding, whatever lies beyond the filled part, again and again."""
    q, keys, values = inputs(*shape, 777, where)
    keys[:, :, filled:], values[:, :, filled:] = torch.nan, torch.nan
    position = torch.tensor([[filled - 1]], device=where)
    ours = torch.ops.tersor.decode_attention(q, keys, values, position, shape[2] ** -0.5)
    wanted = exact(q, keys, values, filled)
    assert float((ours.double() - wanted).norm() / wanted.norm()) < 2.5e-3
    again = torch.ops.tersor.decode_attention(q, keys, values, position, shape[2] ** -0.5)
    assert torch.equal(ours, again)


def test_what_there_are_kernels_for() -> None:
    assert device.takes(32, 8, 128, torch.bfloat16)
    assert not device.takes(32, 8, 96, torch.bfloat16)
    assert not device.takes(64, 4, 128, torch.bfloat16)
    assert not device.takes(32, 8, 128, torch.float16)


@pytest.mark.gpu
def test_position_is_read_on_the_device() -> None:
    """One graph serves every step."""
    q, keys, values = inputs(32, 8, 128, 300, "cuda")
    position = torch.tensor([[3]], device="cuda")
    call = torch.ops.tersor.decode_attention
    call(q, keys, values, position, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(q, keys, values, position, 0.1)
    for at in (0, 100, 299):
        position.fill_(at)
        graph.replay()
        torch.testing.assert_close(out, call(q, keys, values, position, 0.1), rtol=0, atol=0)
