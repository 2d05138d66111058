"""The codec's thread pool: compiled code releases the GIL, so plain Python threads suffice."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


def threads() -> int:
    """Threads the codec uses: TERSOR_THREADS, or the cores this process may run on."""
    wanted = os.environ.get("TERSOR_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=4)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    # The process id is part of the key: a pool does not survive a fork.
    return ThreadPoolExecutor(workers, thread_name_prefix="tersor-codec")


def each(work: Callable[[int], T], items: range) -> list[T]:
    """`work` of every item, on all threads; order kept."""
    workers = min(threads(), len(items))
    if workers <= 1:
        return [work(i) for i in items]
    return list(_pool(threads(), os.getpid()).map(work, items))
