"""Where blocks tell one another that a part of a cut tile is ready (cuda/tile_parts.cuh), and who may use what.

A product needs a flag for every consuming warp, zero when it begins. Blocks lower the flags that they have seen, so all
are zero again when it ends, and nothing has to clear them. But two launches that run at the same time must not share
flags. So there is a pool of *slots* for each device, zeroed once, and a slot is given for good

    to a stream                  whose launches follow each other (with programmatic dependent launch a product begins
                                 early, but raises and reads flags only after what was before it has ended)
    to a stream in a capture     since a CUDA graph may be replayed beside anything else, also beside the stream that it
                                 was captured on. Kernels of one stream in a capture follow each other in the graph, and
                                 a graph does not run beside itself. Captures have numbers that never come again.

A stream is known by its handle, which may come again after the stream was destroyed. The driver keeps a destroyed
stream until its work is done, so the new one's launches come after that. The handle of the stream per thread means
another stream in every thread, which is why the thread is part of its name.

Memory cannot be zeroed once for all within a capture, so a few slots are always kept in hand, and replenished at
launches outside of one. Should a capture find none left, flags are allocated within it, and the graph clears them at
every replay: right, but an operation more. Slots of graphs that are gone are not given again: 8 KB each.

Rejected: flags with the number of the launch (a graph's launches all have the same), clearing by an operation before
(a launch more), a counter per tile that the last block resets (sums would come in any order).
"""

from __future__ import annotations

import threading
from functools import cache

import torch

from tersor.format.errors import KernelError
from tersor.kernels.launcher import capture_of

SLOT = 2048  # flags: eight warps on each of 256 multiprocessors
_CHUNK, _IN_HAND = (
    64,
    32,
)  # slots that are allocated together; fewer are left to captures than this only by captures
_PER_THREAD = 2  # the driver's handle of the calling thread's own stream

Owner = tuple[int, int, int]  # stream, capture or 0, thread where the stream is the thread's


class Pool:
    """The slots of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._given: dict[Owner, torch.Tensor] = {}
        self._free: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def slot(self, owner: Owner) -> torch.Tensor:
        """Zeroed flags that nobody else uses at the same time."""
        captured = owner[1] != 0
        if not captured and len(self._free) < _IN_HAND:
            self._replenish()
        given = self._given.get(owner)
        return self._give(owner) if given is None else given

    def _give(self, owner: Owner) -> torch.Tensor:
        with self._lock:
            if owner not in self._given:
                if not self._free:
                    return torch.zeros(SLOT, dtype=torch.int32, device=self._device)
                self._given[owner] = self._free.pop()
            return self._given[owner]

    def _replenish(self) -> None:
        with self._lock:
            if len(self._free) >= _IN_HAND:
                return
            chunk = torch.zeros((_CHUNK, SLOT), dtype=torch.int32, device=self._device)
            torch.cuda.current_stream(self._device).synchronize()  # other streams will use them
            self._free += chunk.unbind()


@cache
def pool(index: int) -> Pool:
    """Of the device of this index."""
    return Pool(torch.device("cuda", index))


def flags(number: int, device: torch.device) -> torch.Tensor:
    """At least so many flags (int32, zero) for a launch on the current stream of `device`."""
    if number > SLOT:
        raise KernelError(
            f"{device} has so many multiprocessors that a product needs {number} flags, not {SLOT}; report it"
        )
    current = torch.cuda.current_device()
    index = current if device.index is None else device.index
    stream = torch.cuda.current_stream(index).cuda_stream
    captured = index != current or torch.cuda.is_current_stream_capturing()  # cheap; it knows one device only
    thread = threading.get_ident() if stream == _PER_THREAD else 0
    return pool(index).slot((stream, capture_of(stream) if captured else 0, thread))
