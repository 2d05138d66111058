"""One call of a model in which weights are decoded ahead of their products, on streams of their own.

    main stream    product 0 | attention | product 1 | ...             waits for a weight's decoding
    two others     decode 0, decode 2, ...  /  decode 1, decode 3, ...  wait for who read that room before

Between products memory idles, and decoding fills those gaps: it runs there and beside attention and small kernels.
It does not run side by side with cuBLAS's products of one token, since those take a multiprocessor's whole shared
memory; what is decoded waits for them, or they for it. The others are two, so that one piece's last blocks and the
next one's first ones run at the same time; that main goes first is up to who calls: in a stream of higher priority,
as `DecodeLoop` does.

Weights lie in a ring (`tersor.nn.ring`) that is allocated for the call on the main stream and freed there after the
last product, when main has waited for the others. So nothing is kept between calls, a CUDA graph that captures the
call owns the ring and everything in it, and the allocator need not be told of other streams.

What comes next is what came next in the call before (`Order`). Whoever asks for something else is told None and
decodes alone; the order is then another one from the next call on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.layout import matrix_shape
from tersor.kernels.ops import torch_dtype
from tersor.nn.form_window import WindowForm
from tersor.nn.fused import Fused
from tersor.nn.module import CompressedModule
from tersor.nn.ring import Ring, Turns
from tersor.nn.stored import Stored

RING_BYTES = 640 << 20  # decoded weights that wait for their products; more if one matrix is larger
PIECE_BYTES = 96 << 20  # decoded together, if each is smaller: a launch has its price
_PIECE_LAYERS = 8
_ALIGN = 512  # bytes, as the allocator's: cuBLAS may choose by alignment
_LANES = 2


def source_of(layer: nn.Module) -> Stored | Fused | None:
    """How a layer's weight is held, if it is a lossless matrix that products need decoded, to its own dtype."""
    source = layer.compressed.get("weight") if isinstance(layer, CompressedModule) else None
    if isinstance(source, Fused):
        exact = source.exact and isinstance(source.form, WindowForm) and source.dtype == torch.bfloat16
        return source if exact else None
    if not isinstance(source, Stored) or source.entry.codec != CODEC_HUFFMAN:
        return None
    plain = matrix_shape(source.shape) == source.shape and source.dtype == torch_dtype(source.entry.dtype)
    return source if plain else None


@dataclass(frozen=True)
class Order:
    """What a call asked for, in order, cut into pieces: runs of layers' numbers whose weights are decoded together."""

    layers: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]
    piece_of: dict[int, int]
    ring: Ring

    @classmethod
    def of(cls, layers: Sequence[CompressedModule], asked: Sequence[int], shortages: int = 0) -> Order:
        """`asked`: numbers of those of `layers` that were asked for; the ring is halved for each of `shortages`."""
        room = RING_BYTES >> shortages
        if shortages and room < PIECE_BYTES:
            return cls(tuple(asked), (), {}, Ring.of((), 0))
        pieces: list[list[int]] = []
        sizes: list[int] = []
        kind: Any = None
        for number in asked:
            source = source_of(layers[number])
            assert source is not None
            nbytes, before = _padded_bytes(source), kind
            kind = _kind(source)
            fits = sizes and sizes[-1] + nbytes <= PIECE_BYTES and len(pieces[-1]) < _PIECE_LAYERS
            if fits and kind == before:
                pieces[-1].append(number)
                sizes[-1] += nbytes
            else:
                pieces.append([number])
                sizes.append(nbytes)
        where = {number: piece for piece, members in enumerate(pieces) for number in members}
        return cls(tuple(asked), tuple(map(tuple, pieces)), where, Ring.of(sizes, room))


NOTHING = Order((), (), {}, Ring.of((), 0))


class Pass:
    """A call of the model that owns `layers`, by one thread and on one stream."""

    def __init__(self, layers: Sequence[CompressedModule], order: Order) -> None:
        self.opener = get_ident()
        self.asked: dict[int, None] = {}  # in order
        self.vain: set[int] = set()  # decoded, and not asked for
        self.short = False  # whether there was no memory for the ring
        self.abandoned = False  # whether what was asked for says nothing about other calls
        self._layers, self._order = layers, order
        self._turns = Turns(order.ring)
        self._waiting: dict[int, Tensor] = {}  # decoded, and not asked for yet
        self._missing = [len(piece) for piece in order.pieces]  # products to come
        self._decoded: dict[int, torch.cuda.Event] = {}  # pieces that main has not waited for
        self._room: Tensor | None = None
        self._main: torch.cuda.Stream | None = None

    def take(self, number: int, x: Tensor) -> Tensor | None:
        """The weight of a layer that multiplies `x`, until `done`; None if it must be decoded alone."""
        self.asked.setdefault(number)
        piece = self._order.piece_of.get(number, -1)
        if piece < self._turns.open or not self._begins(x.device):
            return None
        self._leave(piece)
        self._decode()
        if number not in self._waiting:
            return None
        self._wait(piece)
        return self._waiting.pop(number)

    def done(self, number: int) -> None:
        """The product with what `take` gave is on its way."""
        piece = self._order.piece_of[number]
        self._missing[piece] -= 1
        if not self._missing[piece]:
            self._leave(piece + 1)
            self._decode()
            if self._turns.open == len(
                self._missing
            ):  # the last product; its memory may go to what comes after
                self._room = None

    def close(self) -> None:
        """Main waits for all that was begun, and the room is free."""
        self._leave(self._turns.next)
        self._room = None

    def abandon(self) -> None:
        """Decode nothing more."""
        self.close()
        self._order, self.abandoned = NOTHING, True

    def _begins(self, device: torch.device) -> bool:
        """Whether this is where the call computes: the device and stream of its first product."""
        stream = _current_stream(device)
        if self._room is None:
            try:
                self._room = torch.empty(self._order.ring.nbytes, dtype=torch.uint8, device=device)
            except torch.OutOfMemoryError:  # a single matrix may still fit
                self._order, self.short = NOTHING, True
                return False
            self._main = stream
        return self._room.device == device and self._main == stream

    def _decode(self) -> None:
        """Begin to decode whatever there is room for now."""
        while (piece := self._turns.come()) is not None:
            sources, weights = self._places(piece)
            if not weights:
                continue
            if self._main is None:
                _decode_to(self._members(piece), sources, weights)
            else:
                lane = _lanes(self._main.device, self.opener)[piece % _LANES]
                lane.wait_stream(self._main)  # whose products read this room before, and who made the arrays
                try:
                    with torch.cuda.stream(lane):
                        _decode_to(self._members(piece), sources, weights)
                finally:  # a part of it may run
                    self._decoded[piece] = lane.record_event()
            self._waiting.update(zip(self._order.pieces[piece], weights, strict=True))

    def _places(self, piece: int) -> tuple[list[Stored | Fused], list[Tensor]]:
        """How a piece's weights are held, and where they go; nothing if they are not held, or not where, they were."""
        assert self._room is not None
        sources: list[Stored | Fused] = []
        weights: list[Tensor] = []
        ring = self._order.ring
        begin = stop = ring.offsets[piece]
        for layer in self._members(piece):
            source = source_of(layer)
            if source is None or source.device(layer) != self._room.device:
                return [], []
            nbytes = math.prod(source.shape) * source.dtype.itemsize
            part = self._room[stop : stop + nbytes]
            if part.numel() < nbytes:  # it has grown
                return [], []
            sources.append(source)
            weights.append(part.view(source.dtype).view(source.shape))
            stop += _padded_bytes(source)
        same = len(set(map(_kind, sources))) == 1
        return (sources, weights) if same and stop <= begin + ring.sizes[piece] else ([], [])

    def _members(self, piece: int) -> list[CompressedModule]:
        return [self._layers[number] for number in self._order.pieces[piece]]

    def _leave(self, stop: int) -> None:
        """Pieces before `stop` are done with; what of them nobody asked for was decoded in vain."""
        for piece in self._turns.leave(stop):
            self._wait(piece)  # or its room would be given away while it is decoded
            for number in self._order.pieces[piece]:
                if self._waiting.pop(number, None) is not None:
                    self.vain.add(number)

    def _wait(self, piece: int) -> None:
        """Have main wait until a piece is decoded."""
        event = self._decoded.pop(piece, None)
        if event is not None and self._main is not None:
            self._main.wait_event(event)


def _decode_to(
    layers: Sequence[CompressedModule], sources: Sequence[Stored | Fused], weights: list[Tensor]
) -> None:
    """Decode on the current stream; all are of one kind."""
    arrays = [source.arrays(layer) for source, layer in zip(sources, layers, strict=True)]
    first = sources[0]
    if isinstance(first, Stored):
        tiles, offsets, books = zip(*arrays, strict=True)
        torch.ops.tersor.huffman_decode_to(tiles, offsets, books, first.entry.dtype, weights)
        return
    for parts, weight in zip(arrays, weights, strict=True):
        torch.ops.tersor.window_decode_to(*parts, weight)


def _kind(source: Stored | Fused) -> tuple[bool, torch.dtype]:
    """What the weights of a piece have in common, because one operator decodes them."""
    return isinstance(source, Stored), source.dtype


def _padded_bytes(source: Stored | Fused) -> int:
    nbytes = math.prod(source.shape) * source.dtype.itemsize
    return -(-nbytes // _ALIGN) * _ALIGN


def _current_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


@cache
def _lanes(device: torch.device, thread: int) -> tuple[torch.cuda.Stream, ...]:
    """A thread's streams for decoding: another thread may be capturing what goes to its own."""
    return tuple(torch.cuda.Stream(device) for _ in range(_LANES))  # type: ignore[no-untyped-call]
