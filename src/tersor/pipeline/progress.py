"""What a long job tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """After a tensor: which one, original bytes done and in all, and what they take in the other form."""

    tensor: str
    done_bytes: int
    total_bytes: int
    stored_bytes: int

    @property
    def ratio(self) -> float:
        """Stored over original bytes so far."""
        return self.stored_bytes / self.done_bytes if self.done_bytes else 0.0


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
