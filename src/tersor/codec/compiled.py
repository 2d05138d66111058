"""`@compiled`: numba's njit as the codec uses it, without the GIL, its machine code kept on disk.

Where nothing can be kept (a read-only installation without a home directory) it is compiled in
every process instead: ten seconds once, not an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is first called."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: "cannot cache function ...: no locator available"
        return njit(nogil=True)(function)
