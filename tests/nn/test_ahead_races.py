"""Decoding ahead on simulated streams: no two accesses to one place without an order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ahead_models import HIDDEN, linear, pair
from torch import Tensor, nn

from tersor.nn import ahead_pass
from tersor.nn.ahead_pass import Order, Pass


class Streams:
    """Streams and events that only note what comes after what, and that memory is read or written."""

    def __init__(self) -> None:
        self.before: list[set[int]] = []  # of each thing that was done: all that surely was done before
        self.touched: list[tuple[int, int, bool]] = []  # where: from, to; whether it was written
        self.main = self.current = Stream(self)
        self.lanes = (Stream(self), Stream(self))

    def touch(self, begin: int, stop: int, written: bool) -> None:
        known = set(self.current.known)
        self.before.append(known)
        self.touched.append((begin, stop, written))
        self.current.known = known | {len(self.before) - 1}

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        outer, self.current = self.current, stream
        yield
        self.current = outer

    def races(self) -> list[tuple[int, int]]:
        """Pairs that touch the same memory, one of them writing, in no order."""
        found = []
        for later, (begin, stop, writes) in enumerate(self.touched):
            for earlier, (start, end, wrote) in enumerate(self.touched[:later]):
                if start < stop and begin < end and (writes or wrote) and earlier not in self.before[later]:
                    found.append((earlier, later))
        return found


class Stream:
    device = torch.device("cpu")

    def __init__(self, streams: Streams) -> None:
        self.streams, self.known = streams, frozenset[int]() | set()

    def record_event(self) -> Any:
        return frozenset(self.known)

    def wait_event(self, event: Any) -> None:
        self.known = self.known | event

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_no_races(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for in whatever order, nothing is read or overwritten before its time."""
    chance = random.Random(seed)
    monkeypatch.setattr(ahead_pass, "RING_BYTES", chance.choice([1, 3, 5]) * HIDDEN * HIDDEN * 2)
    monkeypatch.setattr(ahead_pass, "PIECE_BYTES", chance.choice([1, 2]) * HIDDEN * HIDDEN * 2)
    model, plain = pair(nn.Sequential(*[linear(chance.choice([32, HIDDEN])) for _ in range(12)]))
    streams, decode = Streams(), ahead_pass._decode_to

    def noted(layers: Any, sources: Any, weights: list[Tensor]) -> None:
        for weight in weights:
            streams.touch(weight.data_ptr(), weight.data_ptr() + weight.nbytes, True)
        decode(layers, sources, weights)

    monkeypatch.setattr(ahead_pass, "_decode_to", noted)
    monkeypatch.setattr(ahead_pass, "_current_stream", lambda _: streams.current)
    monkeypatch.setattr(ahead_pass, "_lanes", lambda *_: streams.lanes)
    monkeypatch.setattr(torch.cuda, "stream", streams.within)
    order, x = Order.of(list(model), range(12)), torch.ones(1, HIDDEN).bfloat16()
    decoded = 0
    for asked in (
        list(range(12)),
        [n for n in range(12) if chance.random() < 0.7],
        chance.sample(range(12), 12),
    ):
        call, where = Pass(list(model), order), (0, 0)
        for number in asked:
            weight = call.take(number, x)
            if call._room is not None:
                where = call._room.data_ptr(), call._room.data_ptr() + call._room.nbytes
            if weight is not None:
                assert torch.equal(weight, plain[number].weight)
                streams.touch(weight.data_ptr(), weight.data_ptr() + weight.nbytes, False)
                decoded += 1
                call.done(number)
                if call._room is None:
                    streams.touch(*where, True)  # by whom the allocator gives it next
        if call._room is not None:
            call.close()
            streams.touch(*where, True)
    assert decoded >= 12 and not streams.races()
    assert any(not written for _, _, written in streams.touched)


def test_the_race_test_sees_races() -> None:
    streams = Streams()
    with streams.within(streams.lanes[0]):
        streams.touch(0, 10, True)
    streams.touch(5, 6, False)
    assert streams.races() == [(0, 1)]
