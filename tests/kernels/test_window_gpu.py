"""The `fast` layout on CUDA: the packer and the decoder against NumPy, the product against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from tersor.kernels import ops  # noqa: F401  (defines the operators)
from tersor.kernels.tile import device as tile
from tersor.kernels.window import reference
from tersor.kernels.window.linear import TILE_TOKENS

pytestmark = pytest.mark.gpu

SHAPES = [(16, 64), (1, 64), (33, 100), (100, 576), (250, 2048), (130, 4104), (520, 14336)]


def matrices(rows: int, cols: int) -> dict[str, torch.Tensor]:
    """Kind and hostile weights."""
    g = torch.randn(rows, cols, device="cuda")
    spread = torch.exp2(torch.randint(-20, 20, (rows, cols), device="cuda").float())
    of_row = torch.exp2(torch.randint(-40, 40, (rows, 1), device="cuda").float())
    return {
        "gaussian": (g * 0.02).bfloat16(),
        "heavy-tailed": (g / torch.rand(rows, cols, device="cuda").clamp_min(1e-3)).bfloat16(),
        "row-scaled": (g * of_row).bfloat16(),
        "all-exception": (g * spread).bfloat16(),
        "zero": torch.zeros(rows, cols, device="cuda", dtype=torch.bfloat16),
    }


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error, the scale of each output divided out."""
    scale = expected.abs().amax(0, keepdim=True).clamp_min(1e-300)
    return float(((y.double() - expected) / scale).norm() / (expected / scale).norm().clamp_min(1e-300))


def poisoned_linear(x: torch.Tensor, packed: tuple[torch.Tensor, ...], rows: int, cols: int) -> torch.Tensor:
    torch.full((x.shape[0], rows), float("nan"), device="cuda", dtype=torch.bfloat16)
    return torch.ops.tersor.window_linear(x, *packed, None, rows, cols, False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_and_decode_are_numpys(shape: tuple[int, int]) -> None:
    weights = {
        **matrices(*shape),
        "bits": torch.randint(-32768, 32768, shape, device="cuda", dtype=torch.int16),
    }
    for name, weight in weights.items():
        packed = torch.ops.tersor.window_pack(weight.view(torch.bfloat16))
        expected = reference.pack(weight.view(torch.int16).cpu().numpy().view(np.uint16))
        for ours, theirs in zip(packed, (expected.blocks, expected.places, expected.records), strict=True):
            assert ours.cpu().numpy().tobytes() == theirs.tobytes(), name
        there = torch.full(shape, float("nan"), device="cuda", dtype=torch.bfloat16)
        torch.ops.tersor.window_decode_to(*packed, there)
        for decoded in (torch.ops.tersor.window_decode(*packed, *shape), there):
            assert torch.equal(decoded.view(torch.int16), weight.view(torch.int16)), name


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_is_as_good_as_cublas(shape: tuple[int, int], tokens: int) -> None:
    for name, weight in matrices(*shape).items():
        x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
        packed = torch.ops.tersor.window_pack(weight)
        expected = x.double() @ weight.double().T
        ours = error(poisoned_linear(x, packed, *shape), expected)
        assert ours <= 1.2 * error(linear(x, weight), expected) + 1e-4, name


@pytest.mark.parametrize("shape", [(130, 4104), (520, 14336)], ids=str)
def test_product_does_not_depend_on_the_batch(shape: tuple[int, int]) -> None:
    weight = matrices(*shape)["gaussian"]
    packed = torch.ops.tersor.window_pack(weight)
    most = TILE_TOKENS if tile.supported(packed[0].device) else 50
    x = torch.randn(most, shape[1], device="cuda", dtype=torch.bfloat16)
    whole = poisoned_linear(x, packed, *shape)
    for tokens in (t for t in (1, 2, 3, 5, 8, 9, 16, 20, 32, 40) if t <= most):
        part = poisoned_linear(x[:tokens], packed, *shape)
        assert torch.equal(part, whole[:tokens])
        assert torch.equal(part, poisoned_linear(x[:tokens], packed, *shape))


def test_bias_leading_dimensions_and_strides() -> None:
    weight = matrices(96, 640)["gaussian"]
    packed = torch.ops.tersor.window_pack(weight)
    bias = torch.randn(96, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(640, 2, 3, device="cuda", dtype=torch.bfloat16).permute(1, 2, 0)
    y = torch.ops.tersor.window_linear(x, *packed, bias, 96, 640, False)
    assert y.shape == (2, 3, 96)
    torch.testing.assert_close(y, linear(x, weight, bias), rtol=2e-2, atol=2e-2)
    odd = torch.randn(3 * 640 + 1, device="cuda", dtype=torch.bfloat16)[1:].view(3, 640)
    y = torch.ops.tersor.window_linear(odd, *packed, bias, 96, 640, False)
    torch.testing.assert_close(y, linear(odd, weight, bias), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("tokens", [1, 20, 40])
def test_exact_is_what_the_uncompressed_layer_gives(tokens: int) -> None:
    weight = matrices(128, 512)["gaussian"]
    packed = torch.ops.tersor.window_pack(weight)
    x = torch.randn(tokens, 512, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(torch.ops.tersor.window_linear(x, *packed, None, 128, 512, True), linear(x, weight))


@pytest.mark.parametrize("tokens", [1, 16])
def test_product_can_be_captured_and_compiled(tokens: int) -> None:
    weight = matrices(128, 4096)["gaussian"]
    packed = torch.ops.tersor.window_pack(weight)
    x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
    expected = poisoned_linear(x, packed, 128, 4096)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.tersor.window_linear(x, *packed, None, 128, 4096, False)
    y.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, expected)
    compiled = torch.compile(
        lambda x: torch.ops.tersor.window_linear(x, *packed, None, 128, 4096, False) + 0,
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(x), expected)
