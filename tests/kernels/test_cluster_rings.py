"""How blocks of a cluster share weights and fill slots (cuda/cluster_rings.cuh), with warps that run in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from functools import partial

import pytest

from tersor.kernels.tile.variant import ClusterVariant

STRIPS, CONSUMERS, BYTES = 8, 2, 4096

Waiting = Callable[[], bool]


class Barrier:
    """Of shared memory: counts arrivals and bytes; who waits sees only whether its phase is even or odd."""

    def __init__(self, arrivals: int) -> None:
        self.arrivals = self.pending = arrivals
        self.bytes = self.phase = 0

    def arrive(self, expected: int = 0) -> None:
        assert self.pending > 0, "more arrivals than a phase has"
        self.bytes += expected
        self.pending -= 1
        self._end()

    def copied(self, nbytes: int) -> None:
        self.bytes -= nbytes
        self._end()

    def ended(self, parity: int) -> bool:
        return self.phase % 2 != parity

    def _end(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.pending = self.arrivals
            self.phase += 1


class Cluster:
    """The ring of weights in all blocks; what is in a slot is the stage whose strip it is."""

    def __init__(self, build: ClusterVariant, stages: int, seed: int) -> None:
        self.build, self.stages, self.any = build, stages, random.Random(seed)
        self.blocks, self.slots = range(build.cluster), range(build.a_slots)
        self.own = STRIPS // build.cluster
        self.full = [[Barrier(self.own) for _ in self.slots] for _ in self.blocks]
        self.empty = [[Barrier(CONSUMERS * build.cluster) for _ in self.slots] for _ in self.blocks]
        self.held = [[[-1] * STRIPS for _ in self.slots] for _ in self.blocks]
        self.reading = [[0 for _ in self.slots] for _ in self.blocks]
        self.quiet = [False for _ in self.blocks]
        self.copies: list[Callable[[], None]] = []  # under way

    def turns(self, first: int = 0, every: int = 1) -> Iterator[tuple[int, int, int]]:
        """Stage, slot and parity."""
        for stage in range(first, self.stages, every):
            yield stage, stage % len(self.slots), stage // len(self.slots) % 2

    def write(self, rank: int, slot: int, strip: int, stage: int) -> None:
        assert not self.quiet[rank] and not self.reading[rank][slot]
        self.held[rank][slot][strip] = stage

    def copy(self, rank: int, other: int, slot: int, strip: int, stage: int) -> None:
        assert self.held[rank][slot][strip] == stage and not self.quiet[rank]  # its source is still there
        self.write(other, slot, strip, stage)
        self.full[other][slot].copied(BYTES)

    def decoder(self, rank: int, number: int) -> Generator[Waiting]:
        turn, first = divmod(number, self.own)
        strip = rank * self.own + first
        for stage, slot, parity in self.turns(turn, self.build.turns):
            yield partial(self.empty[rank][slot].ended, parity ^ 1)
            self.write(rank, slot, strip, stage)
            self.full[rank][slot].arrive((STRIPS - self.own) * BYTES if first == 0 else 0)
            for lane in range(self.build.cluster - 1):
                other = lane + (lane >= rank)
                self.copies.append(partial(self.copy, rank, other, slot, strip, stage))

    def consumer(self, rank: int) -> Generator[Waiting]:
        for stage, slot, parity in self.turns():
            yield partial(self.full[rank][slot].ended, parity)
            assert self.held[rank][slot] == [stage] * STRIPS
            self.reading[rank][slot] += 1
            yield lambda: True  # others run
            self.reading[rank][slot] -= 1
            for lane in self.blocks:
                self.empty[lane][slot].arrive()
        number, parity = self.stages % len(self.slots), self.stages // len(self.slots) % 2
        for slot in self.slots:
            last = parity if slot < number else parity ^ 1
            yield partial(self.empty[rank][slot].ended, last)
        self.quiet[rank] = True  # parts of cut tiles may come where weights were

    def run(self) -> None:
        warps = [self.decoder(rank, i) for rank in self.blocks for i in range(self.build.decoders)]
        warps += [self.consumer(rank) for rank in self.blocks for _ in range(CONSUMERS)]
        in_any_order(warps, self.copies, self.any)


def in_any_order(
    warps: list[Generator[Waiting]], copies: list[Callable[[], None]], which: random.Random
) -> None:
    """Run all warps to their ends, and what is added to `copies` meanwhile."""
    waiting = [(warp, until) for warp in warps if (until := next(warp, None)) is not None]
    while waiting or copies:
        ready = [i for i, (_, until) in enumerate(waiting) if until()]
        assert ready or copies, "all wait for ever"
        pick = which.randrange(len(ready) + len(copies))
        if pick >= len(ready):
            copies.pop(pick - len(ready))()
            continue
        warp, _ = waiting.pop(ready[pick])
        if (until := next(warp, None)) is not None:
            waiting.append((warp, until))


@pytest.mark.parametrize("stages", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("cluster", [1, 2])
def test_weights_are_shared_whoever_is_first(cluster: int, turns: int, slots: int, stages: int) -> None:
    for seed in range(10):
        Cluster(ClusterVariant(160, cluster, slots, 3, turns=turns), stages, seed).run()


class Activations:
    """cluster_linear's ring of activations: who asks for them, who reads them, and sums that leave through their slots.

    Two warpgroups of two warps; the first of each may ask. `tiles`: stages of each, two steps a stage.
    """

    WARPS = 2  # of a warpgroup

    def __init__(self, slots: int, in_turns: bool, tiles: list[int], seed: int) -> None:
        self.slots, self.in_turns, self.tiles, self.any = slots, in_turns, tiles, random.Random(seed)
        self.steps, self.ahead = 2 * sum(tiles), slots - 2
        self.full = [Barrier(1) for _ in range(slots)]
        self.empty = [Barrier(2 * self.WARPS) for _ in range(slots)]
        self.held = [-1] * slots
        self.readers = [0] * slots
        self.sums = [0] * slots  # warps whose sums are there
        self.back = 0  # warps that have come to the end of a tile, of all
        self.copies: list[Callable[[], None]] = []

    def arrive(self, step: int) -> None:
        slot = step % self.slots
        assert not self.readers[slot] and not self.sums[slot], "written while it is read"
        self.held[slot] = step
        self.full[slot].copied(BYTES)

    def ask(self, step: int) -> Iterator[Waiting]:
        if step >= self.steps:
            return
        slot, parity = step % self.slots, step // self.slots % 2
        yield partial(self.empty[slot].ended, parity ^ 1)
        self.full[slot].arrive(BYTES)
        self.copies.append(partial(self.arrive, step))

    def warp(self, group: int, warp: int) -> Generator[Waiting]:
        brings = warp == 0 and (self.in_turns or group == 0)
        if brings and group == 0:
            for step in range(self.ahead):
                yield from self.ask(step)
        asked = self.ahead + group  # what it asks for next
        step = 0
        for number, stages in enumerate(self.tiles):
            for k in range(stages):
                for n in range(2):
                    if brings and not self.in_turns:
                        yield from self.ask(asked)
                        asked += 1
                    slot = step % self.slots
                    yield partial(self.full[slot].ended, step // self.slots % 2)
                    assert self.held[slot] == step
                    self.readers[slot] += 1  # to the end of the next step, or of the tile
                    yield lambda: True
                    if k or n:
                        self.readers[(step - 1) % self.slots] -= 1
                    if (k + 1 < stages) if n else k > 0:
                        self.empty[(step - 1) % self.slots].arrive()
                    if brings and self.in_turns and n == group:
                        yield from self.ask(asked)
                        asked += 2
                    step += 1
            last = [(step - 2) % self.slots, (step - 1) % self.slots]
            self.readers[last[1]] -= 1
            self.back += 1
            yield lambda all_back=(number + 1) * 2 * self.WARPS: self.back >= all_back
            assert not any(self.readers[slot] for slot in last), "sums come where activations are read"
            for slot in last:
                assert self.held[slot] in (step - 2, step - 1), "sums are where activations came"
                self.sums[slot] += 1
            yield lambda: True  # they are stored
            for slot in last:
                self.sums[slot] -= 1
                self.empty[slot].arrive()

    def run(self) -> None:
        warps = [self.warp(group, i) for group in range(2) for i in range(self.WARPS)]
        in_any_order(warps, self.copies, self.any)
        assert self.held == [
            max(range(slot, self.steps, self.slots), default=-1) for slot in range(self.slots)
        ]


@pytest.mark.parametrize("tiles", [[1], [1, 1, 1], [2, 1, 3], [5], [4, 7]], ids=str)
@pytest.mark.parametrize("slots", [3, 4, 5, 6])
@pytest.mark.parametrize("in_turns", [False, True])
def test_activations_come_in_order_whoever_is_first(in_turns: bool, slots: int, tiles: list[int]) -> None:
    for seed in range(20):
        Activations(slots, in_turns, tiles, seed).run()
