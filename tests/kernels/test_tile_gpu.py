"""The product for many tokens on Hopper: every build against float64, and against itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import linear

from tersor.kernels import ops  # noqa: F401  (defines the operators)
from tersor.kernels.tile import device as tile
from tersor.kernels.tile.split import Split
from tersor.kernels.tile.variant import Build
from tersor.kernels.window import device as window
from tile_builds import BUILDS, DISTINCT, FEW, MANY, name_of, poisoned, refused

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and tile.supported(torch.device("cuda"))), reason="needs sm_90"
    ),
]

SHAPES = [(16, 64), (128, 128), (1, 64), (33, 100), (130, 576), (250, 2048), (130, 4104), (520, 14336)]
TOKENS = (1, 9, 16, 17, 31, 32, 33, 64, 65, 100, 128, 129, 256, 257)
TOKENS += (300, 350, 400, 512, 513, 550, 600, 640, 660, 700, 769, 900, 1000, 1300, 2048, 4096)


def gaussian(rows: int, cols: int) -> torch.Tensor:
    return (torch.randn(rows, cols, device="cuda") * 0.02).bfloat16()


def hostile(rows: int, cols: int) -> dict[str, torch.Tensor]:
    """Weights with many exceptions, with none, with bases that differ from row to row."""
    g = torch.randn(rows, cols, device="cuda")
    spread = torch.exp2(torch.randint(-20, 20, (rows, cols), device="cuda").float())
    of_row = torch.exp2(torch.randint(-40, 40, (rows, 1), device="cuda").float())
    of_segment = torch.exp2(torch.randint(-10, 10, (rows, -(-cols // 512)), device="cuda").float())
    return {
        "heavy-tailed": (g / torch.rand(rows, cols, device="cuda").clamp_min(1e-3)).bfloat16(),
        "row-scaled": (g * of_row).bfloat16(),
        "segment-scaled": (g * of_segment.repeat_interleave(512, 1)[:, :cols]).bfloat16(),
        "all-exception": (g * spread).bfloat16(),
        "zero": torch.zeros(rows, cols, device="cuda", dtype=torch.bfloat16),
    }


def bias_for(weight: torch.Tensor) -> torch.Tensor:
    """As large as results are, so that neither drowns the other's errors."""
    return (torch.randn(len(weight), device="cuda") * weight.float().norm(dim=1)).bfloat16()


def check(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """The error is cuBLAS's, or nearly; if not, says where it is."""
    exact = x.double() @ weight.double().T
    if bias is not None:
        exact += bias.double()
    scale = (
        weight.double().norm(dim=1).clamp_min(1e-300)
    )  # what results are like; a single one may be near zero
    ours = ((y.double() - exact) / scale).abs()
    cublas = ((linear(x, weight, bias).double() - exact) / scale).abs()
    bad = (~(ours <= 4 * cublas.max() + 0.02)).nonzero()
    if len(bad):
        tokens, rows = (sorted(set(places)) for places in bad.T.tolist())
        pytest.fail(
            f"{len(bad)} of {ours.numel()} wrong; rows {rows[:40]} ({len(rows)}), tokens {tokens[:40]} ({len(tokens)});"
            f" first y {y[tuple(bad[0])].item()} for {exact[tuple(bad[0])].item()}"
        )
    size = (exact / scale).norm().clamp_min(1e-300)
    assert float(ours.norm() / size) <= 1.2 * float(cublas.norm() / size) + 1e-4


@pytest.mark.parametrize("build", BUILDS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_build_is_as_good_as_cublas(shape: tuple[int, int], build: Build) -> None:
    weight = gaussian(*shape)
    packed = window.pack(weight)
    if refused(build, packed):
        return
    tile = build.tokens * build.cluster
    for tokens in (1, build.tokens + 1, tile - 1, tile, tile + 1, 3 * tile - 5):
        x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
        check(poisoned(x, packed, build), x, weight)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", [(250, 2048), (1040, 4104)], ids=str)
def test_every_number_of_tokens(shape: tuple[int, int], tokens: int) -> None:
    weight = gaussian(*shape)
    packed = window.pack(weight)
    x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
    check(poisoned(x, packed, None), x, weight)


@pytest.mark.parametrize("tokens", [16, 32, 64, 128, 256, 320, 512, 576])
@pytest.mark.parametrize("shape", [(33, 100), (250, 2048), (130, 4104)], ids=str)
def test_hostile_weights(shape: tuple[int, int], tokens: int) -> None:
    for weight in hostile(*shape).values():
        x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
        check(poisoned(x, window.pack(weight), None), x, weight)


@pytest.mark.parametrize("build", MANY, ids=name_of)
def test_hostile_weights_in_every_way(build: Build) -> None:
    for weight in hostile(130, 4104).values():
        x = torch.randn(build.tokens * build.cluster + 1, 4104, device="cuda", dtype=torch.bfloat16)
        check(poisoned(x, window.pack(weight), build), x, weight)


@pytest.mark.parametrize("build", BUILDS, ids=name_of)
def test_the_result_is_the_same_every_time(build: Build) -> None:
    weight = gaussian(1040, 8192)  # of which every build cuts tiles
    packed = window.pack(weight)
    x = torch.randn(build.tokens * build.cluster + 7, 8192, device="cuda", dtype=torch.bfloat16)
    first = poisoned(x, packed, build)
    check(first, x, weight)
    for _ in range(20):
        assert torch.equal(poisoned(x, packed, build), first)


@pytest.mark.parametrize("build", DISTINCT, ids=name_of)
@pytest.mark.parametrize("shape", [(250, 2048), (130, 4104)], ids=str)
def test_every_build_adds_the_bias(shape: tuple[int, int], build: Build) -> None:
    """Once, to the rows that there are, also of tiles that several blocks have parts of."""
    weight = gaussian(*shape)
    packed, bias = window.pack(weight), bias_for(weight)
    size = build.tokens * build.cluster
    for tokens in (size - 1, 2 * size + 3):
        x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
        check(poisoned(x, packed, build, bias), x, weight, bias)


def whole_tiles(split: Split) -> int:
    """The most tiles that one run writes without another's help."""
    begins = [split.begin(cluster) for cluster in range(split.clusters + 1)]
    return max(end // split.stages - -(-begin // split.stages) for begin, end in pairwise(begins))


@pytest.mark.parametrize("build", DISTINCT, ids=name_of)
@pytest.mark.parametrize("cols", [64, 128, 192, 320, 384, 640])
def test_a_run_of_several_whole_tiles(cols: int, build: Build) -> None:
    """Sums leave through places of the ring that the next tile's activations come to.

    A tile may be as short as one step or two, and have an odd number of halves.
    """
    weight = gaussian(128 * 300 - 3, cols)
    packed, bias = window.pack(weight), bias_for(weight)
    if refused(build, packed):
        return
    x = torch.randn(build.tokens * build.cluster + 1, cols, device="cuda", dtype=torch.bfloat16)
    kept = tile.kept_for(packed.geometry, packed.places, packed.records)
    assert whole_tiles(tile.planned(packed.geometry, len(x), kept, build, x.device).split) >= 2
    first = poisoned(x, packed, build, bias)
    check(first, x, weight, bias)
    assert torch.equal(poisoned(x, packed, build, bias), first)


@pytest.mark.parametrize("tokens", [17, 300])
def test_operator_bias_leading_dimensions_and_strides(tokens: int) -> None:
    weight = gaussian(96, 640)
    packed = torch.ops.tersor.window_pack(weight)
    bias = torch.randn(96, device="cuda", dtype=torch.bfloat16)
    wide = torch.randn(tokens, 2000, device="cuda", dtype=torch.bfloat16)
    for x in (
        wide[:, 16:656],
        wide[:, 3:643],
        torch.randn(640, tokens, 2, device="cuda", dtype=torch.bfloat16).permute(1, 2, 0),
        torch.randn(tokens * 640 + 1, device="cuda", dtype=torch.bfloat16)[1:].view(tokens, 640),
        torch.randn(1, 640, device="cuda", dtype=torch.bfloat16).expand(tokens, 640),
    ):
        y = torch.ops.tersor.window_linear(x, *packed, bias, 96, 640, False)
        assert y.shape == (*x.shape[:-1], 96)
        torch.testing.assert_close(y, linear(x, weight, bias), rtol=2e-2, atol=2e-2)


def placed(form: str, tokens: int, cols: int) -> torch.Tensor:
    """Activations as models have them: views with NaN around, pieces of 16 bytes nowhere whole."""
    if form == "transposed":
        return torch.randn(cols, tokens, device="cuda", dtype=torch.bfloat16).T
    if form == "one row":
        return torch.randn(1, cols, device="cuda", dtype=torch.bfloat16).expand(tokens, cols)
    pitch, first = {
        "dense": (cols, 0),
        "dense, by an element on": (cols, 1),
        "wide": (cols + 24 + -cols % 8, 8),
        "odd pitch": (cols + 13, 8),
        "odd first column": (cols + 24 + -cols % 8, 3),
    }[form]
    memory = torch.full((first + tokens * pitch + 64,), float("nan"), device="cuda", dtype=torch.bfloat16)
    x = memory.as_strided((tokens, cols), (pitch, 1), first)
    return x.copy_(torch.randn(tokens, cols, device="cuda"))


FORMS = ("dense", "dense, by an element on", "wide", "odd pitch", "odd first column", "transposed", "one row")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cols", [72, 100, 640, 641, 1095])
@pytest.mark.parametrize("build", FEW, ids=name_of)
def test_activations_wherever_they_stand(build: Build, cols: int, form: str) -> None:
    weight = gaussian(200, cols)
    packed = window.pack(weight)
    if refused(build, packed):
        return
    for tokens in (build.tokens * build.cluster - 3, build.tokens * build.cluster + 2):
        x = placed(form, tokens, cols)
        check(poisoned(x, packed, build), x, weight)


@pytest.mark.parametrize("tokens", [17, 64, 200, 300])
def test_product_can_be_captured_and_compiled(tokens: int) -> None:
    weight = gaussian(1152, 4096)
    packed = torch.ops.tersor.window_pack(weight)
    x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)

    def product(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.tersor.window_linear(x, *packed, None, 1152, 4096, False)
        return y

    expected = product(x)
    check(expected, x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = product(product(x)[:, :1].expand(tokens, 4096) * 0 + x)
    y.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, expected)
    compiled = torch.compile(lambda x: product(x) + 0, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)


@pytest.mark.parametrize("tokens", [20, 48, 100, 300, 576])
@pytest.mark.parametrize("size", [1024, 4096])  # the larger one's tiles are cut
def test_products_one_after_another(size: int, tokens: int) -> None:
    """Launches overlap; each must wait for what the one before writes."""
    weights = [gaussian(size, size) for _ in range(4)]
    packed = [window.pack(weight) for weight in weights]
    x = torch.randn(tokens, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(10):
        ours, plain = x, x
        for weight, matrix in zip(weights, packed, strict=True):
            plain = linear(ours, weight)
            ours = tile.tile_linear(ours, matrix)
            torch.testing.assert_close(ours, plain, rtol=3e-2, atol=3e-2)
        chained = x
        for matrix in packed:
            chained = tile.tile_linear(chained, matrix)
        assert torch.equal(chained, ours)
