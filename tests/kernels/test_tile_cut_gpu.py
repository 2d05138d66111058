"""Tiles that are cut between clusters: the same bits every time, beside other products, and in CUDA graphs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tersor.kernels import bench_spqr
from tersor.kernels.fused.device import Matrix
from tersor.kernels.tile import device as tile
from tersor.kernels.tile import flags
from tersor.kernels.tile.split import Split
from tersor.kernels.tile.split import choose as chosen
from tersor.kernels.tile.variant import Build
from tersor.kernels.window import device as window
from tersor.kernels.window.layout import Geometry
from tile_builds import DISTINCT, name_of, poisoned

driver = pytest.importorskip("cuda.bindings.driver")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and tile.supported(torch.device("cuda"))), reason="needs sm_90"
    ),
]

ROWS, COLS = 1040, 8192  # nine tiles of sixty-four stages
PARTS = (2, 4, 16)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have every tile cut at multiples of this part of it."""

    def into(parts: int) -> None:
        def choose(
            rows: int,
            tokens: int,
            stages: int,
            of_tile: int,
            places: int,
            cluster: int = 1,
        ) -> Split:
            best = chosen(rows, tokens, stages, of_tile, places, cluster)
            chunk = max(n for n in range(1, stages // parts + 1) if stages % n == 0)
            return Split(stages, best.token_tiles, best.units, chunk, min(best.units // chunk, places))

        monkeypatch.setattr(tile, "choose", choose)
        tile.planned.cache_clear()

    yield into
    tile.planned.cache_clear()


def matrix(cols: int = COLS) -> tuple[torch.Tensor, Matrix[Geometry]]:
    weight = (torch.randn(ROWS, cols, device="cuda") * 0.02).bfloat16()
    return weight, window.pack(weight)


def slots() -> dict[flags.Owner, int]:
    return flags.pool(torch.cuda.current_device())._given


def flags_are_down() -> bool:
    torch.cuda.synchronize()
    raised = np.ones(flags.SLOT, dtype=np.uint32)
    for slot in slots().values():
        assert int(driver.cuMemcpyDtoH(raised.ctypes.data, slot, raised.nbytes)[0]) == 0
        if raised.any():
            return False
    return bool(slots())


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    "cols", [COLS, 8000, 7936]
)  # rings stand elsewhere, and on odd rounds, when a tile is owned
@pytest.mark.parametrize("build", DISTINCT, ids=name_of)
def test_cut_tiles_are_put_together(build: Build, cols: int, parts: int, cut: Callable[[int], None]) -> None:
    cut(parts)
    weight, packed = matrix(cols)
    x = torch.randn(build.tokens * build.cluster + 7, cols, device="cuda", dtype=torch.bfloat16)
    first = poisoned(x, packed, build)
    kept = tile.kept_for(packed.geometry, packed.places, packed.records)
    split = tile.planned(packed.geometry, x.shape[0], kept, build, x.device).split
    assert split.cuts
    assert split.parts > 1
    exact = x.double() @ weight.double().T
    assert float((first.double() - exact).abs().max()) <= 0.01 * float(exact.abs().max())
    assert flags_are_down()
    for _ in range(10):
        assert torch.equal(poisoned(x, packed, build), first)
    assert flags_are_down()


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("tokens", [20, 50, 100, 200, 300, 500, 576])
@pytest.mark.parametrize("cols", [COLS, 8000])  # of the second, runs begin within segments
def test_cut_tiles_of_quantised_weights(
    cols: int, tokens: int, parts: int, cut: Callable[[int], None]
) -> None:
    cut(parts)
    own = bench_spqr.sample(ROWS, cols, bench_spqr.FOUR_BITS)
    x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
    exact = x.double() @ own.weight.double().T
    first = tile.tile_linear(x, own.matrix)
    assert float((first.double() - exact).abs().max()) <= 0.01 * float(exact.abs().max())
    assert all(torch.equal(tile.tile_linear(x, own.matrix), first) for _ in range(10))
    assert flags_are_down()


@pytest.mark.parametrize("tokens", [32, 64, 128, 250, 500, 576])
def test_products_on_two_streams_at_once(tokens: int, cut: Callable[[int], None]) -> None:
    cut(4)
    _, packed = matrix()
    inputs = [torch.randn(tokens, COLS, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    expected = [tile.tile_linear(x, packed) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    got: list[list[torch.Tensor]] = [[], []]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)  # so that both have work when they begin
    for _ in range(20):
        for stream, x, own in zip(streams, inputs, got, strict=True):
            with torch.cuda.stream(stream):
                own.append(tile.tile_linear(x, packed))
    assert flags_are_down()
    assert len({slots()[(stream.cuda_stream, 0, 0)] for stream in streams}) == 2
    for own, y in zip(got, expected, strict=True):
        assert all(torch.equal(one, y) for one in own)


def captured(x: torch.Tensor, packed: Matrix[Geometry]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """A graph of several products of the same, and their results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [tile.tile_linear(x, packed) for _ in range(10)]
    return graph, results


@pytest.mark.parametrize("tokens", [32, 128, 500, 576])
def test_graphs_are_replayed_at_once(tokens: int, cut: Callable[[int], None]) -> None:
    cut(4)
    _, packed = matrix()
    inputs = [torch.randn(tokens, COLS, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    expected = [tile.tile_linear(x, packed) for x in inputs]
    before = set(slots())
    graphs = [captured(x, packed) for x in inputs]
    owners = set(slots()) - before
    assert len(owners) == len({capture for _, capture, _ in owners}) == 2
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(10):
        for _, results in graphs:
            for y in results:
                y.fill_(float("nan"))
        torch.cuda.synchronize()
        for stream, (graph, _) in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        beside = [tile.tile_linear(x, packed) for x in inputs]
        torch.cuda.synchronize()
        for (_, results), own, y in zip(graphs, beside, expected, strict=True):
            assert torch.equal(own, y)
            assert all(torch.equal(one, y) for one in results)
    assert flags_are_down()


def test_a_capture_may_be_the_first_to_need_flags(
    cut: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(4)
    _, packed = matrix()
    x = torch.randn(128, COLS, device="cuda", dtype=torch.bfloat16)
    expected = tile.tile_linear(x, packed)
    monkeypatch.setattr(flags.pool(torch.cuda.current_device()), "_free", [])
    graph, results = captured(x, packed)
    for _ in range(3):
        for y in results:
            y.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(y, expected) for y in results)
    assert flags_are_down()


def test_compiled_with_graphs_of_its_own() -> None:
    """torch looks for memory of its graphs that somebody kept; in a process that had no product before."""
    script = """
import torch
from tersor.kernels import ops
from tersor.kernels.window import device as window
packed = window.pack((torch.randn(1040, 8192, device="cuda") * 0.02).bfloat16())
parts = packed.stages, packed.places, packed.records
product = lambda x: torch.ops.tersor.window_linear(x, *parts, None, 1040, 8192, False) + 1
x = torch.randn(100, 8192, device="cuda", dtype=torch.bfloat16)
compiled = torch.compile(product, mode="reduce-overhead", fullgraph=True)
with torch.inference_mode():
    for _ in range(4):
        y = compiled(x).clone()
    assert torch.equal(y, product(x))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
