"""Calls that happen at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable


def at_once(call: Callable[[int], None], number: int = 2) -> None:
    """`call(0)`, `call(1)`, ..., each in a thread of its own; back when all are done."""
    threads = [threading.Thread(target=call, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
