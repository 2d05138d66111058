"""Products whose spans are added up within clusters: the bits of the build for one token, whatever the sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from exchange_builds import BUILDS, ONE_STRIP
from tersor.kernels import bench_spqr
from tersor.kernels.bench_spqr import FOUR_BITS, THREE_BITS, Kind, Sample
from tersor.kernels.fused import device as fused
from tersor.kernels.fused.variant import Variant
from tersor.kernels.launcher import has_clusters, has_warpgroups, shared_limit
from tersor.kernels.spqr import device
from tersor.kernels.spqr.linear import variant_for

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
SHARED = 227 << 10  # bytes that a block of an H200 may have


@pytest.fixture(autouse=True)
def _clusters() -> None:
    if not has_clusters(GPU) or shared_limit(GPU) < SHARED:
        pytest.skip("no clusters, or no room for these")


@cache
def sample(rows: int, cols: int, kind: Kind = FOUR_BITS) -> Sample:
    return bench_spqr.sample(rows, cols, kind)


def one_by_one(x: torch.Tensor, own: Sample, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cat([device.linear(row, own.matrix, bias) for row in x[:, None]])


def poisoned(x: torch.Tensor, own: Sample, bias: torch.Tensor | None, build: Variant | None) -> torch.Tensor:
    torch.full((len(x), len(own.weight)), float("nan"), device="cuda", dtype=torch.bfloat16)  # freed
    return device.linear(x, own.matrix, bias, build)


def inputs(tokens: int, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
    return x, torch.randn(rows, device="cuda", dtype=torch.bfloat16)


def quad(cols: int) -> int:
    """Blocks of a cluster for so many columns."""
    spans = -(-cols // 1024)
    return min(spans, 4)


# 2, 2, 3, 4, 5, 8, 12 spans
@pytest.mark.parametrize("cols", [1100, 2048, 2176, 4096, 4104, 8192, 12000], ids=str)
@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("rows", [1, 33, 250, 2000], ids=str)
def test_the_bits_of_one_token(build: Variant, cols: int, rows: int) -> None:
    if build.warpgroups and not has_warpgroups(GPU):
        pytest.skip("warpgroups are Hopper's")
    own, (x, bias) = sample(rows, cols), inputs(build.tokens, rows, cols)
    clustered = build.in_cluster(own.matrix.geometry, SHARED)
    assert clustered.cluster == quad(cols)
    for add in (None, bias):
        rows_of = one_by_one(x, own, add)
        for tokens in sorted({build.tokens, build.tokens - 1, build.tokens // 2 + 1}):
            ours = poisoned(x[:tokens], own, add, clustered)
            assert torch.equal(ours, rows_of[:tokens])
            assert torch.equal(ours, poisoned(x[:tokens], own, add, build))  # combined by another kernel


@pytest.mark.parametrize(("rows", "cols"), [(33000, 2048), (14341, 4096), (8200, 8192), (4096, 14336)])
@pytest.mark.parametrize("kind", [FOUR_BITS, THREE_BITS], ids=str)
def test_many_rounds_of_what_is_launched(rows: int, cols: int, kind: Kind) -> None:
    own, (x, bias) = bench_spqr.sample(rows, cols, kind), inputs(16, rows, cols)
    plan = fused._planned(variant_for, None, 16, own.matrix.geometry, GPU)
    if plan.variant.cluster != quad(cols):
        pytest.skip(f"the GPU holds so few clusters of {quad(cols)} that they take a round more")
    rows_of = one_by_one(x, own, bias)
    for tokens in (9, 15, 16):
        assert torch.equal(poisoned(x[:tokens], own, bias, None), rows_of[:tokens])


@pytest.mark.parametrize("cols", [2048, 4096, 8192])
def test_inboxes_come_round_many_times(cols: int) -> None:
    """One strip to a round, so that halves of inboxes are used sixteen times and more."""
    rows = 16 * 132 // (cols // 1024) * 32 + 5
    own, (x, _) = sample(rows, cols), inputs(16, rows, cols)
    build = replace(ONE_STRIP, cluster=quad(cols))
    first = poisoned(x, own, None, build)
    assert torch.equal(first, poisoned(x, own, None, replace(build, cluster=1)))
    assert torch.equal(first, one_by_one(x, own))


@pytest.mark.parametrize("cols", [2048, 3000, 4096, 8192])
def test_back_to_back(cols: int) -> None:
    """Each may begin while the one before ends; what one reads the other has just written."""
    own, (x, bias) = sample(2000, cols), inputs(16, 2000, cols)
    pair = x, -x
    first = [one_by_one(x, own, bias) for x in pair]
    ys = [device.linear(pair[i % 2], own.matrix, bias) for i in range(200)]
    assert all(torch.equal(y, first[i % 2]) for i, y in enumerate(ys))
    square = sample(cols, cols)
    for _ in range(10):
        chain = [x]
        for _ in range(5):
            chain.append(device.linear(chain[-1], square.matrix))
        assert chain[-1].isfinite().all()
        for before, after in pairwise(chain):
            assert torch.equal(after, one_by_one(before, square))


def test_in_a_graph() -> None:
    own, (x, bias) = sample(2000, 4096), inputs(16, 2000, 4096)
    expected = device.linear(x, own.matrix, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ys = [device.linear(x, own.matrix, bias) for _ in range(10)]
    for _ in range(20):
        for y in ys:
            y.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(y, expected) for y in ys)
