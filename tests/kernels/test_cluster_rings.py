"""How blocks of a cluster share weights (cuda/cluster_rings.cuh), with warps that run in any order."""

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
        self.full = [[Barrier(build.decoders) for _ in self.slots] for _ in self.blocks]
        self.empty = [[Barrier(CONSUMERS * build.cluster) for _ in self.slots] for _ in self.blocks]
        self.held = [[[-1] * STRIPS for _ in self.slots] for _ in self.blocks]
        self.reading = [[0 for _ in self.slots] for _ in self.blocks]
        self.quiet = [False for _ in self.blocks]
        self.copies: list[Callable[[], None]] = []  # under way

    def turns(self) -> Iterator[tuple[int, int, int]]:
        """Stage, slot and parity."""
        for stage in range(self.stages):
            yield stage, stage % len(self.slots), stage // len(self.slots) % 2

    def write(self, rank: int, slot: int, strip: int, stage: int) -> None:
        assert not self.quiet[rank] and not self.reading[rank][slot]
        self.held[rank][slot][strip] = stage

    def copy(self, rank: int, other: int, slot: int, strip: int, stage: int) -> None:
        assert self.held[rank][slot][strip] == stage and not self.quiet[rank]  # its source is still there
        self.write(other, slot, strip, stage)
        self.full[other][slot].copied(BYTES)

    def decoder(self, rank: int, number: int) -> Generator[Waiting]:
        strip = rank * self.build.decoders + number
        for stage, slot, parity in self.turns():
            yield partial(self.empty[rank][slot].ended, parity ^ 1)
            self.write(rank, slot, strip, stage)
            self.full[rank][slot].arrive((STRIPS - self.build.decoders) * BYTES if number == 0 else 0)
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
        waiting = [(warp, next(warp)) for warp in warps]
        while waiting or self.copies:
            ready = [i for i, (_, until) in enumerate(waiting) if until()]
            assert ready or self.copies, "all wait for ever"
            pick = self.any.randrange(len(ready) + len(self.copies))
            if pick >= len(ready):
                self.copies.pop(pick - len(ready))()
                continue
            warp, _ = waiting.pop(ready[pick])
            if (until := next(warp, None)) is not None:
                waiting.append((warp, until))


@pytest.mark.parametrize("stages", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("cluster", [1, 2])
def test_weights_are_shared_whoever_is_first(cluster: int, slots: int, stages: int) -> None:
    for seed in range(10):
        Cluster(ClusterVariant(160, cluster, slots, 3), stages, seed).run()
