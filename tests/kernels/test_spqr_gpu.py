"""The `spqr` layout on CUDA: packing and decoding against NumPy, the product against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from spqr_cases import (
    KINDS,
    SIZES,
    Stored,
    matrix,
    stored,
    with_any_statistics,
    with_full_row,
    with_true_outliers,
)
from tersor.codec.quantized.dequantize import dequantize
from tersor.codec.quantized.matrix import Quantized
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.variant import Variant
from tersor.kernels.spqr import device, ops, reference  # noqa: F401  (defines the operators)
from tersor.kernels.spqr.layout import Geometry
from tersor.kernels.tile import device as tile
from tersor.kernels.tile.variant import Build
from tile_builds import MANY, name_of

pytestmark = pytest.mark.gpu

SHAPES = [(16, 128), (1, 40), (33, 300), (250, 2048), (130, 4104), (272, 14336)]
MAIN = ("g32 two levels", "g16 two levels")
BUILDS = [
    Variant(1, 6, 4, 3),
    Variant(4, 8, 4, 3),
    Variant(8, 4, 2, 5),
    Variant(8, 8, 4, slice_spans=4),  # activations in shared memory
    Variant(8, 8, 4, slice_spans=1),
    Variant(1, 8, 4, 2, slot_bytes=2560),  # a whole row of outliers fits
    Variant(8, 8, 4, 2, slot_bytes=2560),
    Variant(16, 16, 4, slice_spans=2),
    Variant(16, 10, 4, 2, slice_spans=1),
    Variant(16, 16, 4, 1, slice_spans=4, buffers=1, slot_bytes=768),
    Variant(16, 6, 2, 2, slice_spans=1, band=2),  # two strips at a time
    Variant(16, 14, 2, 1, slice_spans=2, slot_bytes=768, band=2),
    Variant(16, 8, 2, 2, slice_spans=1, slot_bytes=768, band=2, adders=1),
    Variant(8, 8, 4, band=2),
]
PRODUCTS = {"g32 two levels": 4, "g16 two levels": 3, "g128": 4, "wide codes": 8, "g16 direct": 5}


@dataclass(frozen=True)
class Case:
    """A matrix on the GPU, packed, and the weights it stands for."""

    stored: Stored
    packed: tuple[torch.Tensor, ...]
    weight: torch.Tensor

    @classmethod
    def of(cls, q: Quantized) -> Case:
        own = stored(q, "cuda")
        weight = torch.from_numpy(dequantize(q)).bfloat16().contiguous().cuda()
        return cls(own, torch.ops.tersor.spqr_pack(*own.pack), weight)

    def decode(self) -> torch.Tensor:
        torch.full(self.weight.shape, float("nan"), device="cuda", dtype=torch.bfloat16)  # freed: poison
        weight: torch.Tensor = torch.ops.tersor.spqr_decode(
            *self.packed, self.stored.order, *self.stored.held
        )
        return weight

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        torch.full((*x.shape[:-1], len(self.weight)), float("nan"), device="cuda", dtype=torch.bfloat16)
        y: torch.Tensor = torch.ops.tersor.spqr_linear(
            x, *self.packed, self.stored.order, bias, *self.stored.held
        )
        return y


@cache
def case(rows: int, cols: int, kind: str, width: int, outliers: str = "some", ordered: bool = False) -> Case:
    share = {"none": 0, "some": 1 / 200, "many": 1 / 20, "more than a slot": 1 / 8, "row": 1 / 200}
    number = int(rows * cols * share[outliers])
    q = matrix(rows, cols, kind, width=width, outliers=number, ordered=ordered, unit=2.0**-4)
    return Case.of(with_true_outliers(with_full_row(q, rows // 2) if outliers == "row" else q))


def same(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(ours.view(torch.int16), expected.view(torch.int16))


_NEARLY_ZERO = 1e-3  # of the median output


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error, the scale of each output divided out; one that happens to be nearly 0 counts for little."""
    largest = expected.abs().amax(0, keepdim=True)
    scale = largest.maximum(_NEARLY_ZERO * largest.median()).clamp_min(1e-300)
    return float(((y.double() - expected) / scale).norm() / (expected / scale).norm().clamp_min(1e-300))


def assert_as_good_as_cublas(own: Case, x: torch.Tensor) -> None:
    expected = x.double() @ own.weight.double().T
    ours, cublas = error(own.linear(x), expected), error(linear(x, own.weight), expected)
    assert ours <= 1.2 * cublas + 1e-4, (ours, cublas)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_packing_and_decoding_are_numpys(kind: str, width: int) -> None:
    for size in SIZES:
        q = matrix(*size, kind, width=width)
        for options in (q, with_full_row(q, size[0] // 2), matrix(*size, kind, width=width, ordered=True)):
            own, expected = Case.of(options), reference.pack(options)
            stages, places, records = (part.cpu().numpy() for part in own.packed)
            assert np.array_equal(stages, expected.stages)
            assert np.array_equal(places, expected.places)
            assert np.array_equal(records, expected.records)
            assert same(own.decode(), own.weight)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["g16 direct", "g32 two levels", "g16 two levels"])
def test_every_statistic_and_code_decodes_to_its_bits(kind: str, width: int) -> None:
    own = Case.of(with_any_statistics(matrix(512, 4096, kind, width=width, outliers=0, unit=2.0**-30), width))
    decoded = own.decode()
    wrong = (decoded.view(torch.int16) != own.weight.view(torch.int16)).sum()
    assert wrong == 0, f"{int(wrong)} of {decoded.numel()} weights"


@pytest.mark.parametrize("unit", [-60, 0, 60])
def test_units_at_both_ends(unit: int) -> None:
    own = Case.of(matrix(33, 300, unit=2.0**unit))
    assert same(own.decode(), own.weight)
    x = torch.randn(2, 300, device="cuda", dtype=torch.bfloat16)
    assert error(own.linear(x), linear(x.double(), own.weight.double())) <= 1e-2


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 9, 16, 24, 32, 33, 64, 65, 100, 129, 200, 256, 300])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_product_is_as_good_as_cublas(kind: str, tokens: int) -> None:
    for shape in SHAPES if kind in MAIN else SHAPES[2:5:2]:  # a kernel is compiled for each
        x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
        assert_as_good_as_cublas(case(*shape, kind, PRODUCTS[kind]), x)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_every_width_multiplies(kind: str, width: int) -> None:
    own = case(70, 1100, kind, width)
    for tokens in (8, 40):
        assert_as_good_as_cublas(own, torch.randn(tokens, 1100, device="cuda", dtype=torch.bfloat16))


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("kind", MAIN)
def test_every_width_multiplies_for_hundreds_of_tokens(kind: str, width: int) -> None:
    """Of two kinds only: a kernel is compiled for each."""
    own = case(70, 1100, kind, width)
    for tokens in (200, 300):
        assert_as_good_as_cublas(own, torch.randn(tokens, 1100, device="cuda", dtype=torch.bfloat16))


@pytest.fixture
def chosen(build: Build, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """That build for every number of tokens that has a choice."""
    if not tile.supported(torch.device("cuda")):
        pytest.skip("needs sm_90")
    monkeypatch.setattr(tile, "variant_for", lambda *_: build)
    tile.planned.cache_clear()
    yield build
    tile.planned.cache_clear()


@pytest.mark.parametrize("build", MANY, ids=name_of)
@pytest.mark.parametrize("width", [3, 4, 8])
@pytest.mark.parametrize("kind", MAIN)
def test_every_way_to_multiply_hundreds_of_tokens(kind: str, width: int, chosen: Build) -> None:
    own, tile_tokens = case(130, 1100, kind, width), chosen.tokens * chosen.cluster
    for tokens in (tile_tokens - 3, tile_tokens + 1):
        assert_as_good_as_cublas(own, torch.randn(tokens, 1100, device="cuda", dtype=torch.bfloat16))


@pytest.mark.parametrize("build", MANY, ids=name_of)
@pytest.mark.parametrize("outliers", ["none", "many", "more than a slot", "row"])
def test_hundreds_of_tokens_with_any_number_of_outliers(outliers: str, chosen: Build) -> None:
    own = case(130, 4104, "g32 two levels", 4, outliers)
    tokens = chosen.tokens * chosen.cluster + 1
    assert_as_good_as_cublas(own, torch.randn(tokens, 4104, device="cuda", dtype=torch.bfloat16))


@pytest.mark.parametrize("outliers", ["none", "many", "more than a slot", "row"])
@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 17, 64, 128, 200, 300])
def test_any_number_of_outliers(outliers: str, tokens: int) -> None:
    for shape in ((33, 300), (130, 4104)):
        own = case(*shape, "g32 two levels", 4, outliers)
        assert same(own.decode(), own.weight)
        assert_as_good_as_cublas(own, torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16))


@pytest.mark.parametrize("outliers", ["some", "many", "more than a slot", "row"])
def test_few_tokens_do_not_depend_on_the_batch_and_repeat(outliers: str) -> None:
    own = case(130, 4104, "g32 two levels", 4, outliers)
    x = torch.randn(8, 4104, device="cuda", dtype=torch.bfloat16)
    whole = own.linear(x)
    for tokens in range(1, 9):
        for _ in range(3):
            assert torch.equal(own.linear(x[:tokens]), whole[:tokens])
    assert torch.equal(own.linear(x[3:4]), whole[3:4])


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("shape", [(33, 300), (130, 4104), (272, 14336)], ids=str)
@pytest.mark.parametrize("outliers", ["some", "row"])
def test_every_build_gives_the_same_bits(build: Variant, shape: tuple[int, int], outliers: str) -> None:
    own = case(*shape, "g32 two levels", 4, outliers)
    *sizes, unit = own.stored.held
    stages, places, records = own.packed
    packed = Matrix(Geometry(*sizes), stages, places, records, unit)
    x = torch.randn(build.tokens, shape[1], device="cuda", dtype=torch.bfloat16)
    rows = torch.cat([device.linear(row, packed) for row in x[:, None]])
    for tokens in {build.tokens, build.tokens // 2 + 1}:
        assert torch.equal(device.linear(x[:tokens], packed, None, build), rows[:tokens])


@pytest.mark.parametrize("tokens", [20, 70])
def test_many_tokens_repeat(tokens: int) -> None:
    own = case(272, 14336, "g32 two levels", 4)
    x = torch.randn(tokens, 14336, device="cuda", dtype=torch.bfloat16)
    first = own.linear(x)
    assert all(torch.equal(own.linear(x), first) for _ in range(3))


def test_column_order_bias_leading_dimensions_and_strides() -> None:
    own = case(96, 640, "g32 two levels", 4, ordered=True)
    bias = torch.randn(96, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(640, 2, 3, device="cuda", dtype=torch.bfloat16).permute(1, 2, 0)
    y = own.linear(x, bias)
    assert y.shape == (2, 3, 96)
    torch.testing.assert_close(y, linear(x, own.weight, bias), rtol=2e-2, atol=2e-2)
    plain = case(96, 640, "g32 two levels", 4)
    odd = torch.randn(3 * 640 + 1, device="cuda", dtype=torch.bfloat16)[1:].view(3, 640)
    torch.testing.assert_close(plain.linear(odd, bias), linear(odd, plain.weight, bias), rtol=2e-2, atol=2e-2)
    assert plain.linear(x[:0]).shape == (0, 3, 96)
    wide = x.float()
    torch.testing.assert_close(own.linear(wide), linear(wide, own.weight.float()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 6, 16, 64])
def test_product_can_be_captured_and_compiled(tokens: int) -> None:
    own = case(128, 4096, "g16 two levels", 3, ordered=True)
    x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
    expected = own.linear(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.tersor.spqr_linear(x, *own.packed, own.stored.order, None, *own.stored.held)
    y.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, expected)
    compiled = torch.compile(
        lambda x: torch.ops.tersor.spqr_linear(x, *own.packed, own.stored.order, None, *own.stored.held) + 0,
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(x), expected)
