"""Weights of a block decoded together: one launch where there were seven.

In the `compact` layout every product decodes its matrix first. A launch of the decoder costs
what it costs (its table, its first and last tiles), and small matrices hardly fill a GPU. So when the
first layer of a transformer block wants its weight, those of the block's other layers are decoded
along, in one launch, and wait for their layers; each is given out once and dropped after its
product. The scratch is bounded: a block that decodes to more comes in several batches.

Blocks are found by structure: elements of a `ModuleList` with layers in them (not those of
lists within: experts, of which few are used). A layer that does not want its weight in a call (keys
of a cross-attention after the first token) shows that it does not pay, and its batch decodes
one by one from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.layout import matrix_shape
from tersor.nn.module import CompressedModule
from tersor.nn.scope import BATCHES, open_scope, this_thread
from tersor.nn.stored import Stored

_AHEAD = "ahead"  # an attribute of a layer: its batch, and which member it is
_SCRATCH_BYTES = 1 << 29  # that a batch decodes to at most; a larger matrix is decoded by itself


class Waiting:
    """During one call of the block, by `opener`: the weights that were decoded and not asked for yet."""

    def __init__(self, opener: int) -> None:
        self.opener = opener  # the thread
        self.weights: tuple[Tensor | None, ...] = ()


class Batch:
    """Layers whose weights are decoded together during their block's forward."""

    def __init__(self, members: list[CompressedModule]) -> None:
        self.members = tuple(members)
        self.together = True  # until a weight was decoded that nobody wanted
        self.waiting: Waiting | None = None

    def take(self, index: int) -> Tensor | None:
        """The weight of member `index`; None if it must be decoded alone."""
        waiting = self.waiting
        if waiting is None or waiting.opener != this_thread() or not self.together:
            return None
        if not waiting.weights:
            waiting.weights = self._decode()
        weight = waiting.weights[index] if waiting.weights else None
        waiting.weights = tuple(None if i == index else other for i, other in enumerate(waiting.weights))
        return weight

    def begin(self) -> Any:
        """Before the block's forward."""
        before = self.waiting
        if before is None or before.opener == this_thread():
            self.waiting = Waiting(this_thread())
        return before

    def end(self, before: Any, finished: bool) -> None:
        """After it: a weight that nobody asked for did not pay. Another thread's says nothing."""
        if self.waiting is None or self.waiting.opener != this_thread():
            return
        if finished and any(weight is not None for weight in self.waiting.weights):
            self.together = False
        self.waiting = before

    def _decode(self) -> tuple[Tensor, ...]:
        """All members' weights; none if one of them is not stored, or not where, it was any more."""
        sources = [_source(member) for member in self.members]
        stored = [source for source in sources if source is not None]
        if len(stored) < len(sources):
            self.together = False
            return ()
        arrays = [source.arrays(member) for source, member in zip(stored, self.members, strict=True)]
        tiles, offsets, books = zip(*arrays, strict=True)
        if any(own.device != tiles[0].device for own in tiles):  # moved, or offloaded but for the first
            self.together = False
            return ()
        sizes = [n for source in stored for n in source.shape]
        weights = torch.ops.tersor.huffman_decode_many(tiles, offsets, books, stored[0].entry.dtype, sizes)
        return tuple(weight.to(source.dtype) for weight, source in zip(weights, stored, strict=True))


def decoded(module: CompressedModule) -> Tensor:
    """The weight of a layer, from its batch if that has it."""
    place = module.__dict__.get(_AHEAD)
    weight: Tensor | None = None if place is None else place[0].take(place[1])
    return module.decode("weight") if weight is None else weight


def batch_blocks(model: nn.Module, wanted: set[nn.Module]) -> None:
    """Have the layers of `wanted` whose weights are entropy coded decoded with the others of their block."""
    able = {m for m in wanted if isinstance(m, CompressedModule) and _source(m) is not None}
    for block in list(_blocks(model)):
        batches = [Batch(members) for members in _runs(block, able, _SCRATCH_BYTES)]
        for batch in batches:
            for index, member in enumerate(batch.members):
                member.__dict__[_AHEAD] = batch, index
        if batches:
            block.__dict__[BATCHES] = batches
            open_scope(block)


def dissolve(model: nn.Module) -> None:
    """Have every layer decode its own weight again."""
    for module in model.modules():
        leave(module)
        module.__dict__.pop(BATCHES, None)


def leave(module: nn.Module) -> None:
    """Take a layer out of its batch, whose others then decode one by one."""
    batch, _ = module.__dict__.pop(_AHEAD, (None, 0))
    if batch is not None:
        batch.together = False


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _layers(block: nn.Module) -> Iterator[nn.Module]:
    """The modules of a block, without those in lists within."""
    yield block
    for child in block.children():
        if not isinstance(child, nn.ModuleList):
            yield from _layers(child)


def _runs(block: nn.Module, able: set[CompressedModule], most: float) -> Iterator[list[CompressedModule]]:
    """The block's layers in their order, in runs of one dtype that decode to `most` bytes; no single ones."""
    run: list[CompressedModule] = []
    for layer in _layers(block):
        if not isinstance(layer, CompressedModule) or layer not in able:
            continue
        full = sum(_decoded_bytes(member) for member in (*run, layer)) > most
        if run and (full or _dtype(layer) != _dtype(run[0])):
            if len(run) > 1:
                yield run
            run = []
        run.append(layer)
    if len(run) > 1:
        yield run


def _source(member: nn.Module) -> Stored | None:
    """How a layer's weight is stored, if it is a matrix that the format does not reshape, entropy coded."""
    source = member.compressed.get("weight") if isinstance(member, CompressedModule) else None
    if not isinstance(source, Stored) or source.entry.codec != CODEC_HUFFMAN:
        return None
    return source if matrix_shape(source.shape) == source.shape else None


def _dtype(member: CompressedModule) -> str:
    source = _source(member)
    assert source is not None
    return source.entry.dtype


def _decoded_bytes(member: CompressedModule) -> int:
    source = member.compressed["weight"]
    return math.prod(source.shape) * source.dtype.itemsize
