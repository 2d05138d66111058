"""Where blocks tell one another that a part of a cut tile is ready (cuda/tile_parts.cuh), and who may use what.

A product needs a flag for every consuming warp, zero when it begins. Blocks lower the flags that they have seen, so all
are zero again when it ends, and nothing has to clear them. But two launches that run at the same time must not share
flags. So there is a pool of *slots* for each device, zeroed once, and a slot is given for good

    to a stream                  whose launches follow each other (with programmatic dependent launch a product begins
                                 early, but raises and reads flags only after what was before it has ended)
    to a stream in a capture     since a CUDA graph may be replayed beside anything else, also beside the stream that it
                                 was captured on. Kernels of one stream in a capture follow each other in the graph, and
                                 a graph does not run beside itself. Captures have numbers that never come again.

A stream is known by its handle, which may come again after the stream was destroyed; its work was done by then, or
comes before the new one's in the driver's own order. The handle of the stream per thread means another stream in every
thread, which is why the thread is part of its name. What is not covered: one captured graph that is instantiated twice,
and both replayed at the same time (torch instantiates a graph once).

The memory is the driver's, not torch's: a slot outlives every graph and every pool of memory that torch keeps for one,
and it may be allocated while something is captured, by this thread or another. Nobody gives slots back; 8 KB each.

Rejected: flags with the number of the launch (a graph's launches all have the same), clearing in the kernel before
(not every product has one), a counter per tile that the last block resets (sums would come in any order).
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache

import torch

from tersor.format.errors import KernelError
from tersor.kernels.launcher import capture_of, zeroed

SLOT = 2048  # flags, of 4 bytes: eight warps on each of 256 multiprocessors
_CHUNK = 64  # slots that are allocated together
_PER_THREAD = 2  # the driver's handle of the calling thread's own stream

Owner = tuple[int, int, int]  # stream, capture or 0, thread where the stream is the thread's


class Pool:
    """The slots of one device."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._given: dict[Owner, int] = {}
        self._free: list[int] = []
        self._lock = threading.Lock()

    def slot(self, owner: Owner) -> int:
        """The address of zeroed flags that nobody else uses at the same time."""
        given = self._given.get(owner)
        return self._give(owner) if given is None else given

    def _give(self, owner: Owner) -> int:
        with self._lock:
            if owner not in self._given:
                if not self._free:
                    first = zeroed(_CHUNK * SLOT * 4, self._index)
                    self._free = [first + i * SLOT * 4 for i in range(_CHUNK)]
                self._given[owner] = self._free.pop()
            return self._given[owner]


@cache
def pool(index: int) -> Pool:
    """Of the device of this index."""
    return Pool(index)


def flags(number: int, device: torch.device) -> ctypes.c_void_p:
    """The address of at least so many flags (32 bits, zero) for a launch on the current stream of `device`."""
    if number > SLOT:
        raise KernelError(
            f"{device} has so many multiprocessors that a product needs {number} flags, not {SLOT}; report it"
        )
    current = torch.cuda.current_device()
    index = current if device.index is None else device.index
    stream = torch.cuda.current_stream(index).cuda_stream
    capture = 0
    if index != current:
        with torch.cuda.device(index):
            capture = capture_of(stream)
    elif torch.cuda.is_current_stream_capturing():  # cheap
        capture = capture_of(stream)
    thread = threading.get_ident() if stream == _PER_THREAD else 0
    return ctypes.c_void_p(pool(index).slot((stream, capture, thread)))
