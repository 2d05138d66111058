"""How blocks of a cluster share weights, fill slots and let sums out (cuda/cluster_linear.cu), in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from functools import partial

import pytest

from tersor.kernels.tile.variant import VARIANTS, WIDE, ClusterVariant
from tersor.kernels.window.layout import Geometry

STRIPS, GROUPS, BYTES = 8, 2, 4096
WARPS = 2  # of a warpgroup, here
CONSUMERS = GROUPS * WARPS

GEOMETRY = Geometry(4096, 4096)
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
    """All blocks' rings; what is in a slot is the stage or step whose weights or activations they are.

    `run`: stages of its tiles, each of `row` stages, where the first and the last may be cut.
    """

    def __init__(self, build: ClusterVariant, row: int, run: list[int], seed: int) -> None:
        self.build, self.row, self.tiles, self.any = build, row, run, random.Random(seed)
        self.head_is_here = [
            number > 0 or len(run) == 1 or stages == row for number, stages in enumerate(run)
        ]
        self.stages, self.steps = sum(run), 2 * sum(run)
        self.pieces = -(-build.tokens // build.stored_tokens)
        self.held_stages = 2 if self.pieces > 2 and not staging(build) else 1
        self.in_turns = build.turns > 1
        self.ahead = build.x_slots - 1 - self.in_turns
        self.blocks, self.slots, self.x_slots = range(build.cluster), build.a_slots, build.x_slots
        self.own = STRIPS // build.cluster
        self.halves = 1 + build.apart  # of a copied stage
        self.come: dict[tuple[int, int, int], int] = {}  # of them, by block, slot and strip
        self.full = [[Barrier(self.own) for _ in range(self.slots)] for _ in self.blocks]
        self.empty = [[Barrier(CONSUMERS * build.cluster) for _ in range(self.slots)] for _ in self.blocks]
        self.x_full = [[Barrier(1) for _ in range(self.x_slots)] for _ in self.blocks]
        self.x_empty = [[Barrier(CONSUMERS) for _ in range(self.x_slots)] for _ in self.blocks]
        self.copied = [Barrier(1) for _ in self.blocks]
        self.back = [[0] * GROUPS for _ in self.blocks]  # warps that have come by, at tiles' ends
        self.all_back = [0 for _ in self.blocks]
        self.held = [[[-1] * STRIPS for _ in range(self.slots)] for _ in self.blocks]
        self.x_held = [[-1] * self.x_slots for _ in self.blocks]
        # How many read there, copy from there, or have sums there.
        self.readers = [[[0] * STRIPS for _ in range(self.slots)] for _ in self.blocks]
        self.x_readers = [[0] * self.x_slots for _ in self.blocks]
        self.staged: dict[tuple[int, int, int], int] = {}  # of the readers, by block, warpgroup and slot
        self.x_sums = [0 for _ in self.blocks]
        # Pieces of a tile's sums, by block and warpgroup: whether each has been read, in the order of their stores.
        self.stores: dict[tuple[int, int], list[bool]] = {
            (r, g): [] for r in self.blocks for g in range(GROUPS)
        }
        self.converted = dict.fromkeys(self.stores, 0)  # warps that have come by
        self.quiet = [False for _ in self.blocks]
        self.copies: list[Callable[[], None]] = []  # under way

    def write(self, rank: int, slot: int, strip: int, stage: int) -> None:
        assert not self.quiet[rank] and not self.readers[rank][slot][strip]
        self.held[rank][slot][strip] = stage

    def copy(self, rank: int, slot: int, strip: int, stage: int) -> None:
        assert self.held[rank][slot][strip] == stage and not self.quiet[rank]  # its source is still there
        self.readers[rank][slot][strip] -= 1
        other = rank ^ 1
        assert not self.quiet[other] and not self.readers[other][slot][strip], "written while it is read"
        self.come[other, slot, strip] = self.come.get((other, slot, strip), 0) + 1
        if self.come[other, slot, strip] % self.halves == 0:
            self.write(other, slot, strip, stage)
        self.full[other][slot].copied(BYTES // self.halves)

    def send(self, rank: int, strip: int, stage: int, half: int) -> None:
        if len(self.blocks) > 1 and half < self.halves:
            slot = stage % self.slots
            self.readers[rank][slot][strip] += 1
            self.copies.append(partial(self.copy, rank, slot, strip, stage))

    def decoder(self, rank: int, number: int) -> Generator[Waiting]:
        turn, first = divmod(number, self.own)
        strip = rank * self.own + first
        owed = None
        for stage in range(turn, self.stages, self.build.turns):
            if owed is not None:
                self.send(rank, strip, owed, 1)
            slot, parity = stage % self.slots, stage // self.slots % 2
            yield partial(self.empty[rank][slot].ended, parity ^ 1)
            self.write(rank, slot, strip, stage)
            self.full[rank][slot].arrive((STRIPS - self.own) * BYTES if first == 0 else 0)
            self.send(rank, strip, stage, 0)
            owed = stage
            yield lambda: True  # the next one is decoded
        if owed is not None:
            self.send(rank, strip, owed, 1)

    def ask(self, rank: int, step: int) -> Iterator[Waiting]:
        if step >= self.steps:
            return
        slot, parity = step % self.x_slots, step // self.x_slots % 2
        yield partial(self.x_empty[rank][slot].ended, parity ^ 1)
        self.x_full[rank][slot].arrive(BYTES)
        self.copies.append(partial(self.arrived, rank, slot, step))

    def arrived(self, rank: int, slot: int, step: int) -> None:
        assert not self.x_readers[rank][slot] and not self.quiet[rank], "written while it is read"
        self.x_held[rank][slot] = step
        self.x_full[rank][slot].copied(BYTES)

    def reads(self, rank: int, group: int, stage: int, change: int) -> None:
        for strip in range(group * 4, group * 4 + 4):
            self.readers[rank][stage % self.slots][strip] += change

    def give_back(self, stage: int) -> None:
        for rank in self.blocks:
            self.empty[rank][stage % self.slots].arrive()

    def consumer(self, rank: int, group: int, warp: int) -> Generator[Waiting]:
        brings = warp == 0 and (self.in_turns or group == 0)
        stores = warp == WARPS - 1
        if brings and group == 0:
            for step in range(self.ahead):
                yield from self.ask(rank, step)
        asked = self.ahead + group  # what it asks for next
        x_empty, x_readers = self.x_empty[rank], self.x_readers[rank]
        stage = 0
        for number, stages in enumerate(self.tiles):
            for k in range(stages):
                for n in range(2):
                    step = 2 * stage + n
                    if n == 0:
                        yield partial(self.full[rank][stage % self.slots].ended, stage // self.slots % 2)
                        assert self.held[rank][stage % self.slots] == [stage] * STRIPS
                        self.reads(rank, group, stage, 1)
                    yield partial(self.x_full[rank][step % self.x_slots].ended, step // self.x_slots % 2)
                    assert self.x_held[rank][step % self.x_slots] == step
                    x_readers[step % self.x_slots] += 1
                    yield lambda: True
                    settles = k == 0 and number > 0
                    stored = settles and self.tiles[number - 1] == self.row
                    if n == 1 and stored and self.pieces > 1:
                        if stores:
                            yield from self.settle(rank, group, self.pieces - 2)
                        x_readers[(step - 2) % self.x_slots] -= 1  # sums have been stored from there
                        self.x_sums[rank] -= 1
                        x_empty[(step - 2) % self.x_slots].arrive()
                    if n == 0 and k > 0:
                        self.reads(rank, group, stage - 1, -1)
                        if self.held_stages == 1 or k + 1 < stages:
                            self.give_back(stage - 1)
                    if n or k:
                        x_readers[(step - 1) % self.x_slots] -= 1
                        x_empty[(step - 1) % self.x_slots].arrive()
                    late = settles and not self.in_turns
                    for _ in range(2 if late and n else 0 if late else 1):
                        if brings and (not self.in_turns or n == group):
                            yield from self.ask(rank, asked)
                            asked += 1 + self.in_turns
                    if n == 1 and stored:
                        if stores:
                            yield from self.settle(rank, group, 0)
                        self.leave(rank, group, stage, self.row)
                stage += 1
            if (group, warp) == (1, 1) and stages == self.row and len(self.blocks) > 1:
                self.copied[rank ^ 1].arrive()
            yield lambda: True
            self.reads(rank, group, stage - 1, -1)
            last_x = (2 * stage - 1) % self.x_slots
            x_readers[last_x] -= 1
            if self.pieces == 1:
                x_empty[last_x].arrive()
            if self.head_is_here[number] and stages == self.row:
                yield from self.stage_sums(rank, group, number, stage)
                if stores:
                    self.store(rank, group, stage)
                continue
            self.give_back(stage - 1)  # a part, or a head that waits for parts
            if self.held_stages > 1 and stages > 1:
                self.give_back(stage - 2)
            if self.pieces > 1:
                x_empty[last_x].arrive()
        if self.tiles[-1] < self.row:
            for slot in range(self.slots):
                parity = self.stages // self.slots % 2
                last = parity if slot < self.stages % self.slots else parity ^ 1
                yield partial(self.empty[rank][slot].ended, last)
            assert not any(self.x_readers[rank]) and not any(map(any, self.readers[rank]))
            self.quiet[rank] = True  # parts of cut tiles may come where operands were

    def stage_sums(self, rank: int, group: int, number: int, stage: int) -> Iterator[Waiting]:
        self.back[rank][group] += 1
        here = self.back[rank][group] + -self.back[rank][group] % WARPS
        yield lambda: self.back[rank][group] >= here
        if len(self.blocks) > 1:
            yield partial(self.copied[rank].ended, self.tiles[:number].count(self.row) % 2)
        for held in range(self.held_stages):
            assert not any(self.readers_but_sums(rank, group, stage - 1 - held)), (
                "sums come where weights are read"
            )
            self.sums(rank, group, stage - 1 - held, 1)
        if self.pieces > 1:
            self.all_back[rank] += 1
            here = self.all_back[rank] + -self.all_back[rank] % CONSUMERS
            yield lambda: self.all_back[rank] >= here
            slot = (2 * stage - 1) % self.x_slots
            assert self.x_held[rank][slot] == 2 * stage - 1, "sums are where activations came"
            assert self.x_readers[rank][slot] == self.x_sums[rank], "sums come where activations are read"
            self.x_readers[rank][slot] += 1
            self.x_sums[rank] += 1
        self.converted[rank, group] += 1
        here = self.converted[rank, group] + -self.converted[rank, group] % WARPS
        yield lambda: self.converted[rank, group] >= here

    def store(self, rank: int, group: int, stage: int) -> None:
        """What reads the pieces of the sums, whenever it comes to it."""
        done = self.stores[rank, group] = [False] * self.pieces
        slot = (2 * stage - 1) % self.x_slots

        def reads(piece: int, change: int) -> None:
            if piece == 1:
                self.x_readers[rank][slot] += change
                self.x_sums[rank] += change
            elif piece == 0 or self.held_stages > 1:
                self.sums(rank, group, stage - 1 - piece // 2, change)

        def read(piece: int) -> None:
            done[piece] = True
            reads(piece, -1)

        for piece in range(self.pieces):
            reads(piece, 1)
            self.copies.append(partial(read, piece))

    def settle(self, rank: int, group: int, but: int) -> Iterator[Waiting]:
        """Until all pieces have been read, or all `but` the last so many."""
        yield lambda: all(self.stores[rank, group][: self.pieces - but])

    def sums(self, rank: int, group: int, stage: int, change: int) -> None:
        self.staged[rank, group, stage % self.slots] = (
            self.staged.get((rank, group, stage % self.slots), 0) + change
        )
        self.reads(rank, group, stage, change)

    def readers_but_sums(self, rank: int, group: int, stage: int) -> list[int]:
        slot = stage % self.slots
        of_sums = self.staged.get((rank, group, slot), 0)
        return [count - of_sums for count in self.readers[rank][slot][group * 4 : group * 4 + 4]]

    def leave(self, rank: int, group: int, stage: int, stages: int) -> None:
        """The sums of the tile that ended before `stage` have been stored."""
        for held in range(self.held_stages):
            self.sums(rank, group, stage - 1 - held, -1)
            self.give_back(stage - 1 - held)

    def all_run(self) -> None:
        warps = [self.decoder(rank, i) for rank in self.blocks for i in range(self.build.decoders)]
        warps += [
            self.consumer(rank, group, i)
            for rank in self.blocks
            for group in range(GROUPS)
            for i in range(WARPS)
        ]
        in_any_order(warps, self.copies, self.any)
        assert all(
            held == [max(range(slot, self.steps, self.x_slots), default=-1) for slot in range(self.x_slots)]
            for held in self.x_held
        )


def in_any_order(
    warps: list[Generator[Waiting]], copies: list[Callable[[], None]], which: random.Random
) -> None:
    """Run all warps to their ends, and what is added to `copies` meanwhile: at any time, or as late as can be."""
    late = which.random() < 0.5
    waiting = [(warp, until) for warp in warps if (until := next(warp, None)) is not None]
    while waiting or copies:
        ready = [i for i, (_, until) in enumerate(waiting) if until()]
        assert ready or copies, "all wait for ever"
        pick = which.randrange(len(ready) + len(copies) * (not late or not ready))
        if pick >= len(ready):
            copies.pop(pick - len(ready))()
            continue
        warp, _ = waiting.pop(ready[pick])
        if (until := next(warp, None)) is not None:
            waiting.append((warp, until))


def staging(build: ClusterVariant) -> int:
    """Bytes for sums beside the rings."""
    return dict(build.program(GEOMETRY).constants)["STAGING_BYTES"]


DISTINCT = {  # those that differ in more than their width
    (b.cluster, b.a_slots, b.x_slots, b.turns, b.apart, -(-b.tokens // b.stored_tokens), staging(b) > 0): b
    for b in (*WIDE, *(b for own in VARIANTS.values() for b in own))
    if isinstance(b, ClusterVariant)
}


@pytest.mark.parametrize("row", [3, 4, 5, 9])
@pytest.mark.parametrize("build", DISTINCT.values(), ids=str)
def test_operands_and_sums_share_slots_whoever_is_first(build: ClusterVariant, row: int) -> None:
    if row < build.a_slots:
        assert not build.fits(Geometry(4096, 64 * (2 * row - 1)))
        return
    for seed in range(8):
        for begin, whole, end in (
            (0, 1, 0),
            (1, 2, 0),
            (row - 1, 1, 1),
            (0, 3, row - 1),
            (0, 0, 1),
            (2, 0, 2),
        ):
            run = [n for n in (begin, *[row] * whole, end) if n]
            Cluster(build, row, run, seed).all_run()
