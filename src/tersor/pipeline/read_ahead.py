"""Read tensors ahead of their use, within a budget of bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from tersor.format.shard import Shard


class Budget:
    """A counting lock over bytes; a request larger than all of it is granted when nothing else is held."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._changed = threading.Condition()

    def try_take(self, nbytes: int) -> bool:
        """Take `nbytes` if they fit now."""
        with self._changed:
            if self._held and self._held + nbytes > self._total:
                return False
            self._held += nbytes
            return True

    def take(self, nbytes: int) -> None:
        """Wait until `nbytes` fit, then take them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + nbytes <= self._total)
            self._held += nbytes

    def give(self, nbytes: int) -> None:
        """Give `nbytes` back."""
        with self._changed:
            self._held -= nbytes
            self._changed.notify_all()


def read_ahead(
    wanted: Iterable[tuple[Shard, str, int]], budget: Budget
) -> Iterator[tuple[Shard, str, NDArray[np.uint8]]]:
    """Yield (shard, name, bytes) in order, reading the next ones meanwhile as far as the budget goes.

    The third item of `wanted` is what the tensor will hold of the budget until the caller gives it back.
    """
    items = iter(wanted)
    with ThreadPoolExecutor(1, thread_name_prefix="tersor-read") as reader:
        pending: list[tuple[Shard, str, Future[NDArray[np.uint8]]]] = []
        following = next(items, None)
        try:
            while following or pending:
                while following and budget.try_take(following[2]):
                    shard, name, _ = following
                    pending.append((shard, name, reader.submit(shard.read, name)))
                    following = next(items, None)
                if not pending and following:
                    budget.take(following[2])
                    shard, name, _ = following
                    pending.append((shard, name, reader.submit(shard.read, name)))
                    following = next(items, None)
                shard, name, future = pending.pop(0)
                yield shard, name, future.result()
        finally:
            for _, _, future in pending:
                future.cancel()
