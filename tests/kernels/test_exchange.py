"""How the blocks of a cluster add up a quad's spans (cuda/exchange.cuh), emulated; and which builds do so.

The emulation has the text's index arithmetic and its barriers, one coroutine per adding warp and stores that arrive
when they like, in any order. It fails where a place of an inbox is written before it was read or read before it was
written, where a strip comes out wrong or twice, where anything comes for a warp that has left, and where nobody can go
on.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch

from exchange_builds import BUILDS, H200, pretend_an_h200
from tersor.format.errors import KernelError
from tersor.kernels.compiler import compile_program
from tersor.kernels.fused import device as fused
from tersor.kernels.fused.variant import Variant
from tersor.kernels.launcher import Launch
from tersor.kernels.spqr.layout import Geometry
from tersor.kernels.spqr.linear import variant_for

UNIT_BYTES = 512
Span = tuple[int, int, int]  # round, strip, span


@dataclass
class Barrier:
    """An mbarrier: a phase ends when all have arrived and no byte is missing; both may come first."""

    arrivals: int
    phase: int = 0
    pending: int = field(init=False)
    missing: int = 0

    def __post_init__(self) -> None:
        self.pending = self.arrivals

    def count(self, arrivals: int = 0, expected: int = 0) -> None:
        self.pending -= arrivals
        self.missing += expected
        assert self.pending >= 0, "somebody arrived in the phase before his own"
        if self.pending == 0 and self.missing == 0:
            self.phase, self.pending = self.phase + 1, self.arrivals

    def ended(self, parity: int) -> bool:
        """What try_wait.parity answers: whether the phase in progress is not of this parity."""
        return self.phase % 2 != parity


class Inbox:
    def __init__(self, cluster: int, units: int) -> None:
        self.places: list[Span | None] = [None] * (2 * units * cluster)
        self.full = [Barrier(1), Barrier(1)]
        self.empty = [Barrier(cluster), Barrier(cluster)]
        self.left = False  # nobody is there any more: its block may be gone


@dataclass
class Cluster:
    """The adding warps of a cluster at work on so many strips."""

    size: int
    spans: int  # strips of a round
    adders: int
    strips: int
    order: random.Random
    flying: list[Callable[[], None]] = field(default_factory=list)
    written: Counter[tuple[int, int]] = field(default_factory=Counter)  # strip, warp

    def __post_init__(self) -> None:
        self.units = -(-self.spans // self.size)
        self.rounds = -(-self.strips // self.spans)
        ranks, warps = range(self.size), range(self.adders)
        self.inboxes = [[Inbox(self.size, self.units) for _ in warps] for _ in ranks]

    def run(self) -> None:
        warps = [self.warp(rank, warp) for rank in range(self.size) for warp in range(self.adders)]
        waits: dict[Iterator[Callable[[], bool]], Callable[[], bool]] = {w: lambda: True for w in warps}
        while waits or self.flying:
            ready = [w for w, may_go in waits.items() if may_go()]
            assert ready or self.flying, "deadlock"
            chosen = self.order.randrange(len(ready) + len(self.flying))
            if chosen >= len(ready):
                self.flying.pop(chosen - len(ready))()
            elif (wait := next(ready[chosen], None)) is not None:
                waits[ready[chosen]] = wait
            else:
                del waits[ready[chosen]]

    def warp(self, rank: int, warp: int) -> Iterator[Callable[[], bool]]:
        """finish.cuh, a warp of a cluster; yields what it waits for."""
        own, shift = self.inboxes[rank][warp], warp * self.spans % self.size
        for turn in range(self.rounds + 1):
            if turn < self.rounds:
                yield partial(own.empty[turn % 2].ended, turn // 2 % 2 ^ 1)
                for s in range(min(self.strips - turn * self.spans, self.spans)):
                    inbox = self.inboxes[(s + shift) % self.size][warp]
                    at = turn % 2 * self.units * self.size + s // self.size * self.size + rank
                    self.flying.append(self.store(inbox, at, (turn, s, rank)))
            if turn == 0:
                continue
            before = turn - 1
            here = min(self.strips - before * self.spans, self.spans)
            first = (rank + self.size - shift) % self.size
            units, half = -(-max(here - first, 0) // self.size), before % 2
            own.full[half].count(1, units * self.size * UNIT_BYTES)
            yield partial(own.full[half].ended, before // 2 % 2)
            for u in range(units):
                begin = (half * self.units + u) * self.size
                found = own.places[begin : begin + self.size]
                assert found == [(before, first + u * self.size, span) for span in range(self.size)]
                own.places[begin : begin + self.size] = [None] * self.size
                self.written[before * self.spans + first + u * self.size, warp] += 1
                yield lambda: True
            if before + 2 < self.rounds:
                for other in self.inboxes:
                    assert not other[warp].left
                    other[warp].empty[half].count(1)
                    yield lambda: True
        own.left = True

    @staticmethod
    def store(inbox: Inbox, at: int, what: Span) -> Callable[[], None]:
        def arrive() -> None:
            assert not inbox.left
            assert inbox.places[at] is None, "written over what nobody has read"
            inbox.places[at] = what
            inbox.full[what[0] % 2].count(0, -UNIT_BYTES)

        return arrive


@pytest.mark.parametrize("cluster", range(2, 9))
@pytest.mark.parametrize(("spans", "adders"), [(4, 2), (1, 2), (3, 1), (6, 4)])
def test_every_strip_is_added_once_and_nobody_waits_for_ever(cluster: int, spans: int, adders: int) -> None:
    for strips in (1, spans, spans + 1, 2 * spans + 1, 7 * spans, 9 * spans - 1):
        for seed in range(4):
            work = Cluster(cluster, spans, adders, strips, random.Random(seed))
            work.run()
            assert work.written == {(s, w): 1 for s in range(strips) for w in range(adders)}
            for inbox in (inbox for inboxes in work.inboxes for inbox in inboxes):
                assert not any(inbox.places)  # so no store is under way when a block ends,
                uses = [-(-(work.rounds - half) // 2) for half in (0, 1)]
                assert [b.phase for b in inbox.full] == uses
                assert [b.phase for b in inbox.empty] == [max(n - 1, 0) for n in uses]  # and no arrival


def test_a_parity_too_early_is_found() -> None:
    """The emulation can fail: without room being awaited, inboxes are written over."""

    class Hasty(Cluster):
        def __post_init__(self) -> None:
            super().__post_init__()
            for inbox in (inbox for inboxes in self.inboxes for inbox in inboxes):
                for barrier in inbox.empty:
                    barrier.ended = lambda parity: True  # type: ignore[method-assign]

    with pytest.raises(AssertionError):
        for seed in range(50):
            Hasty(4, 4, 2, 40, random.Random(seed)).run()


def of_spans(spans: int, bits: int = 4) -> Geometry:
    return Geometry(4096, 1024 * spans, bits, 32, 2)


def test_which_builds_are_in_clusters() -> None:
    build = variant_for(16, of_spans(4), *H200)
    assert build.slice_spans == 1 and build.blocks_per_sm == 2
    for spans, cluster in ((2, 2), (3, 3), (4, 4), (5, 4), (8, 4), (14, 4)):
        assert build.in_cluster(of_spans(spans), H200[1]) == replace(build, cluster=cluster)
    assert build.in_cluster(of_spans(1), H200[1]) == build
    for other in (replace(build, band=2), replace(build, adders=1), replace(build, slice_spans=2)):
        assert other.in_cluster(of_spans(4), H200[1]) == other
    few = variant_for(8, of_spans(4), *H200)
    assert few.in_cluster(of_spans(4), H200[1]) == few


@pytest.mark.parametrize("bits", range(2, 9))
def test_blocks_in_clusters_still_fit(bits: int) -> None:
    """The driver takes 1 KB for each of them, of the 228 KB that a multiprocessor of an H200 has."""
    for spans in (2, 3, 4):
        for group, levels in ((32, 2), (16, 2), (16, 1), (128, 1)):
            geometry = Geometry(4096, 1024 * spans, bits, group, levels)
            build = variant_for(16, geometry, *H200).in_cluster(geometry, H200[1])
            block = build.shared(geometry.stage_bytes)
            if build.cluster > 1:
                assert build.blocks_per_sm * (block + 1024) <= 228 << 10
            else:
                in_cluster = replace(build, cluster=spans).shared(geometry.stage_bytes)
                assert build.blocks_per_sm * (in_cluster + 1024) > 228 << 10


def test_shared_memory_is_what_the_kernel_lays_out() -> None:
    alone = Variant(16, 8, 4, 2, 1)
    for cluster, units in ((2, 2), (3, 2), (4, 1), (5, 1), (8, 1)):
        inboxes = 2 * (2 * units * cluster * UNIT_BYTES + 4 * 8)
        assert replace(alone, cluster=cluster).shared(1120) - alone.shared(1120) == inboxes


def test_no_more_clusters_are_launched_than_the_gpu_holds() -> None:
    build = variant_for(16, of_spans(4), *H200).in_cluster(of_spans(4), H200[1])
    assert build.launch(of_spans(4), 132).blocks == (66, 4)
    assert build.launch(of_spans(4), 132, 60).blocks == (60, 4)
    assert build.launch(of_spans(4), 132, 100).blocks == (66, 4)
    assert build.launch(of_spans(8), 132, 66).blocks == (33, 8)
    assert build.launch(of_spans(8), 132, 62).blocks == (31, 8)
    assert build.launch(of_spans(14), 132, 66).blocks == (16, 16)
    assert build.rounds(of_spans(14), 16) == replace(build, cluster=1).rounds(of_spans(14), 18) == 4
    assert build.launch(replace(of_spans(4), rows=100), 132, 60).blocks == (7, 4)


@pytest.mark.parametrize("held", [0, 62, 64, 66])
def test_a_gpu_that_holds_fewer_clusters_than_blocks_combines(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry, gpu = of_spans(4), torch.device("cuda", 0)
    build = variant_for(16, geometry, *H200).in_cluster(geometry, H200[1])

    def planned(variant: Variant, *_: Any) -> tuple[None, Launch] | None:
        clusters = held if variant.cluster > 1 else None
        return None if clusters == 0 else (None, variant.launch(geometry, 132, clusters))

    monkeypatch.setattr(fused, "planned", planned)
    monkeypatch.setattr(fused, "chosen", lambda *_: build)
    monkeypatch.setattr(fused, "multiprocessors", lambda _: H200[0])
    plan = fused._planned.__wrapped__(variant_for, None, 16, geometry, gpu)
    # 256 strips, four at a time: 64 clusters need one round, as 66 blocks of a span do; 62 need two.
    expected = (build, 0) if held >= 64 else (replace(build, cluster=1), 4)
    assert (plan.variant, plan.partial) == expected
    if held:  # one that is asked for takes what there is
        assert fused._planned.__wrapped__(variant_for, build, 16, geometry, gpu).launch.blocks == (held, 4)
    else:
        with pytest.raises(KernelError, match="no room for"):
            fused._planned.__wrapped__(variant_for, build, 16, geometry, gpu)


@pytest.mark.parametrize(
    ("rows", "spans", "clustered"),
    [
        (4096, 14, True),
        (8192, 14, True),
        (12000, 5, False),
    ],  # 4 rounds each, 8 each; 6 where single blocks have 4
)
@pytest.mark.parametrize("warpgroups", [False, True])
def test_quads_that_are_not_whole_are_clusters_where_that_takes_no_round_more(
    rows: int, spans: int, clustered: bool, warpgroups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = replace(of_spans(spans), rows=rows)

    def planned(variant: Variant, *_: Any) -> tuple[None, Launch]:
        return None, variant.launch(geometry, 132, 66 if variant.cluster > 1 else None)

    monkeypatch.setattr(fused, "planned", planned)
    pretend_an_h200(monkeypatch, warpgroups=warpgroups)
    plan = fused._planned.__wrapped__(variant_for, None, 16, geometry, torch.device("cuda", 0))
    assert (plan.variant.cluster, plan.partial) == ((4, -(-spans // 4)) if clustered else (1, spans))
    assert plan.variant.warpgroups == warpgroups


@pytest.mark.parametrize("clusters", [False, True])
def test_builds_are_in_clusters_where_there_are_any(clusters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_an_h200(monkeypatch, clusters, warpgroups=False)
    for spans in (1, 4, 14):
        build = fused.chosen(variant_for, 16, of_spans(spans), torch.device("cuda", 0))
        assert build.cluster == (4 if clusters and spans > 1 else 1)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_what_is_tested_on_a_gpu_compiles(build: Variant) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        pytest.skip("NVRTC is not installed")
    for way in (build, build.in_cluster(of_spans(4), H200[1])):
        compiled = compile_program(way.program(of_spans(4)), "sm_90")
        assert compiled.resources.spills == 0
        assert "serialized" not in compiled.log
