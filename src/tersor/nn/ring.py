"""Room for pieces that come one after the other, and when each may come: a ring, and no torch.

A piece lies behind the one before it, or at the beginning again where that leaves no room. So it takes the
place of earlier pieces, and must wait until those are done with: the last of them says when, because pieces
are done with in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ring:
    """offsets: where each piece begins; behind: the last earlier piece whose room it takes, -1 if none; nbytes: all."""

    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    behind: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, sizes: Sequence[int], room: int) -> Ring:
        """Pieces of so many bytes in a ring of `room` bytes; a piece larger than that lies at its beginning, alone."""
        offsets: list[int] = []
        behind: list[int] = []
        end = 0
        for size in sizes:
            begin = end if end + size <= room else 0
            end = begin + size
            met = [i for i, at in enumerate(offsets) if at < end and begin < at + sizes[i]]
            offsets.append(begin)
            behind.append(max(met, default=-1))
        nbytes = max((begin + size for begin, size in zip(offsets, sizes, strict=True)), default=0)
        return cls(tuple(sizes), tuple(offsets), tuple(behind), nbytes)


class Turns:
    """One round: which pieces came (those before `next`), and which are done with (those before `open`)."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.next = 0
        self.open = 0

    def come(self) -> int | None:
        """The next piece, if it may come now."""
        piece = self.next
        if piece == len(self.ring.offsets) or self.ring.behind[piece] >= self.open:
            return None
        self.next += 1
        return piece

    def leave(self, stop: int) -> range:
        """All pieces before `stop` are done with; those that were not yet. What did not come will not."""
        left = range(self.open, stop)
        self.open, self.next = max(self.open, stop), max(self.next, stop)
        return left
