"""The column loop of a block as a CUDA graph: recorded once for a shape, replayed without Python.

A block of 128 columns is some 6,000 launches on a few thousand numbers each. Started one by one from
Python they take the GPU's time several times over; replayed from a graph they follow each other within
about a microsecond. Blocks of one matrix, and of all matrices of its height, share a graph.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import torch
from torch import Tensor

from tersor.quantize.columns import Block, new_block, quantize_block
from tersor.quantize.settings import Settings

_KEPT = 8  # graphs: a model's matrices have a few heights


def captured(
    n: int, rows: int, group: int, like: Tensor, settings: Settings, served: torch.dtype
) -> tuple[Block, torch.cuda.CUDAGraph]:
    """A block of n columns and the graph that quantises it; shared by all that ask for the same in this thread."""
    key = (n, rows, group, like.device, like.dtype, settings, served, threading.get_ident())
    return _capture(*key)


def forget() -> None:
    """Give back the GPU memory of blocks and graphs, when a job is done."""
    _capture.cache_clear()


@lru_cache(maxsize=_KEPT)
def _capture(
    n: int,
    rows: int,
    group: int,
    device: torch.device,
    compute: torch.dtype,
    settings: Settings,
    served: torch.dtype,
    thread: int,
) -> tuple[Block, torch.cuda.CUDAGraph]:
    with torch.cuda.device(device):
        block = new_block(n, rows, -(-n // group), torch.empty(0, dtype=compute, device=device), settings)
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # kernels are loaded at their first launch, which a capture forbids
            quantize_block(block, group, settings, served)
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            quantize_block(block, group, settings, served)
    return block, graph
