"""Rows out of the `fast` layout are the matrix's rows: every bit pattern, any order, repeated, cut."""

from __future__ import annotations

import pytest
import torch

from tersor.kernels import ops  # noqa: F401  (defines the operators)
from tersor.kernels.window import rows as rows  # defines the operator

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = [(1, 1), (16, 64), (33, 100), (40, 512), (50, 1030), (130, 4104)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_the_matrix_rows(shape: tuple[int, int], device: str) -> None:
    height, cols = shape
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-32768, 32768, shape, dtype=torch.int16, generator=generator)
    gaussian = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
    for weight in (bits.view(torch.bfloat16).to(device), gaussian.to(device)):
        packed = torch.ops.tersor.window_pack(weight)
        for wanted in (
            torch.randint(height, (7,), generator=generator),
            torch.arange(height),
            torch.arange(0),
        ):
            wanted = wanted.to(device)
            out = torch.ops.tersor.window_decode_rows(*packed, wanted, height, cols)
            assert out.shape == (len(wanted), cols)
            assert torch.equal(out.view(torch.int16), weight[wanted].view(torch.int16))


def test_schema_and_fake() -> None:
    packed = torch.ops.tersor.window_pack(torch.randn(40, 100).bfloat16())
    arguments = (*packed, torch.tensor([3, 39, 3]), 40, 100)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.tersor.window_decode_rows.default, arguments, test_utils=tests)


@pytest.mark.gpu
def test_it_can_be_captured() -> None:
    weight = (torch.randn(300, 2048, device="cuda") * 0.02).bfloat16()
    packed = torch.ops.tersor.window_pack(weight)
    wanted = torch.tensor([5], device="cuda")
    torch.ops.tersor.window_decode_rows(*packed, wanted, 300, 2048)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.tersor.window_decode_rows(*packed, wanted, 300, 2048)
    wanted.fill_(299)
    graph.replay()
    assert torch.equal(out, weight[299:])
