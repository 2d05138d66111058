"""The ring by itself: no piece comes while one that it would overwrite is still wanted, and all come."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tersor.nn.ring import Ring, Turns


def test_places() -> None:
    ring = Ring.of([4, 3, 3, 2, 9, 1], 9)
    assert ring.nbytes == 9
    assert Ring.of([4, 4, 20, 4], 9).offsets == (0, 4, 0, 0)
    assert ring.offsets == (0, 4, 0, 3, 0, 0)
    assert ring.behind == (-1, -1, 0, 1, 3, 4)
    assert Ring.of([2, 3], 100).nbytes == 5
    assert Ring.of([2, 30, 1], 10).nbytes == 30
    assert Ring.of([], 10).nbytes == 0


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.integers(0, 10**6))
def test_every_piece_is_there_when_it_is_wanted(sizes: list[int], room: int, seed: int) -> None:
    """Some are left out; what is read was written by its own piece, last of all."""
    ring, chance = Ring.of(sizes, room), random.Random(seed)
    turns, memory, came = Turns(ring), [-1] * ring.nbytes, []

    def come() -> None:
        while (piece := turns.come()) is not None:
            came.append(piece)
            at = ring.offsets[piece]
            assert at + sizes[piece] <= ring.nbytes
            memory[at : at + sizes[piece]] = [piece] * sizes[piece]

    wanted = [piece for piece in range(len(sizes)) if chance.random() < 0.8]
    for piece in wanted:
        left = turns.leave(piece)
        assert piece not in left and turns.open == piece
        come()
        at = ring.offsets[piece]
        assert memory[at : at + sizes[piece]] == [piece] * sizes[piece]
        assert list(turns.leave(piece + 1)) == [piece]
        come()
    assert came == sorted(set(came)) and set(wanted) <= set(came)
    if len(wanted) == len(sizes):
        assert turns.come() is None and turns.open == len(sizes)


def test_as_far_ahead_as_there_is_room() -> None:
    turns = Turns(Ring.of([5, 5, 5, 5], 10))
    assert [turns.come(), turns.come(), turns.come()] == [0, 1, None]
    assert list(turns.leave(1)) == [0]
    assert [turns.come(), turns.come()] == [2, None]
    assert list(turns.leave(4)) == [1, 2, 3] and turns.come() is None and not turns.leave(2)
