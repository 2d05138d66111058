"""Weights decoded ahead of their products, while what comes before those runs.

The plain model's bits come from torch's own product, and that wants the whole matrix decoded. One after the
other, a token of an 8B model would wait 7 ms for decoding and then 3.4 ms for products. So the model's forward is a
scope (`tersor.nn.scope`), and in it the weights that the call before asked for are decoded in the same order, a few
hundred megabytes ahead, on streams beside the one that computes (`tersor.nn.ahead_pass`): between products, and
beside attention and small kernels. Not side by side with cuBLAS's products of one token, which take a
multiprocessor's whole shared memory.

That order is all that is known. Nothing is guessed from names or structure, and a model that asks for something
else (another branch, cross-attention that keeps its keys, a layer twice) gets what was decoded where that fits and
decodes alone where it does not. A weight that was decoded and not asked for in a second call is never again
decoded ahead: of a mixture's experts, few would be wanted. So do all layers alone that compute on another stream or
in another thread than the call began in, or whose arrays are elsewhere by then. From the first product on that
wants a gradient all do, since autograd keeps the weights; of such a call nothing is learned. Where there is no
memory for the ring, later calls try half of it, and before long none.

A part of the model that is called by itself decodes layer by layer, and a layer that is used several times in a
call decodes alone from its second use on.

`torch.compile` cannot follow streams. Where whole steps are compiled and run within `whole_calls`, a layer becomes an
opaque operator, `tersor::ahead_linear`, which finds its weight when it runs. In whatever order the compiler has the
operators run, what they compute is the same. Elsewhere compiled layers decode alone.

Rejected: a launch for each block's weights at its beginning, which came before this; it saved launches and
overlapped nothing. Rings keyed by the arrays' addresses, which a compiler's buffers take in turns.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.nn.ahead_pass import NOTHING, Order, Pass, source_of
from tersor.nn.module import AHEAD, CompressedModule
from tersor.nn.product import wants_gradient
from tersor.nn.scope import SHARED, open_scope

_OFTEN = 2  # a weight that was decoded in vain so often is left to its layer

_known: WeakValueDictionary[int, Ahead] = WeakValueDictionary()
_numbers = itertools.count()


class Ahead:
    """What a model's calls share: its layers on one device whose products want decoded weights, and their order."""

    def __init__(self, layers: Sequence[CompressedModule]) -> None:
        self.layers: tuple[Any, ...] = tuple(layers)
        self.order = NOTHING
        self.vain: Counter[int] = Counter()  # how often a layer's weight was decoded and not asked for
        self.shortages = 0  # how often there was no memory for the ring
        self.call: Pass | None = None
        self.compiles = False  # whether steps that are compiled now will run within a call
        self._settle()

    def _settle(self) -> None:
        """Be found: by the operator, and by the layers that are still compressed and have nobody else."""
        self.number = next(_numbers)
        _known[self.number] = self
        for number, layer in enumerate(self.layers):
            if isinstance(layer, CompressedModule):
                layer.__dict__.setdefault(AHEAD, (self, number))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: not the call that runs."""
        return vars(self) | {"call": None, "compiles": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._settle()

    def begin(self) -> Any:
        """Before the model's forward: the call, unless it is within another, of this thread or not."""
        if torch.compiler.is_compiling() or self.call is not None:
            return None
        self.call = Pass(self.layers, self.order)
        return self.call

    def end(self, before: Any, finished: bool) -> None:
        """After it."""
        if before is None:
            return
        if self.call is before:  # or another thread began at the same time
            self.call = None
        before.close()
        if before.short:
            self.shortages, self.order = self.shortages + 1, NOTHING
        if finished:
            self._learn(before)

    def product(self, number: int, x: Tensor) -> Tensor | None:
        """x (..., in) -> (..., out) of a layer; None if it must decode alone."""
        call = self.call
        if call is None or call.opener != get_ident():
            return None
        weight = call.take(number, x)
        if weight is None:
            return None
        y = F.linear(x, weight, self.layers[number].bias)
        call.done(number)
        return y

    def abandon(self) -> None:
        """Autograd keeps this call's weights: decode no more of them, and learn nothing from it."""
        call = self.call
        if call is not None and call.opener == get_ident():
            call.abandon()

    def _learn(self, call: Pass) -> None:
        """What a finished call asked for, the next one will."""
        if call.abandoned:
            return
        self.vain.update(call.vain - call.asked.keys())
        following = tuple(n for n in call.asked if self.vain[n] < _OFTEN)
        if following == self.order.layers:
            return
        following = tuple(n for n in following if source_of(self.layers[n]) is not None)
        if following != self.order.layers:
            self.order = Order.of(self.layers, following, self.shortages)


def product(layer: nn.Linear, x: Tensor) -> Tensor | None:
    """x (..., in) -> (..., out), by a weight that was decoded ahead; None if the layer must decode it itself."""
    place: tuple[Ahead, int] | None = layer.__dict__.get(AHEAD)
    if place is None:
        return None
    owner, number = place
    made: Tensor | None = None
    if wants_gradient(x) or (layer.bias is not None and wants_gradient(layer.bias)):
        if not torch.compiler.is_compiling():
            owner.abandon()
    elif not torch.compiler.is_compiling():
        made = owner.product(number, x)
    elif owner.compiles:
        made = torch.ops.tersor.ahead_linear(x, owner.number, number, layer.out_features)
    return made


def install(model: nn.Module, layers: Sequence[CompressedModule]) -> None:
    """Have those of `layers`, in `model`, whose products want decoded weights get them ahead in the model's calls.

    Not where a hook took the model's forward over before: it would go on calling the one without a scope.
    """
    if "forward" in model.__dict__:
        return
    able: dict[torch.device, list[CompressedModule]] = {}
    for layer in layers:
        source = source_of(layer)
        if source is not None:
            able.setdefault(source.device(layer), []).append(layer)
    made = [Ahead(group) for group in able.values() if len(group) > 1]
    if made:
        model.__dict__[SHARED] = made
        open_scope(model)


@contextmanager
def whole_calls(model: nn.Module) -> Iterator[None]:
    """Within, a call of `model`, or of a part of it, by a function that torch compiles whole."""
    begun: list[tuple[Ahead, bool, Any]] = []
    finished = False
    try:
        for ahead in model.__dict__.get(SHARED, ()):
            begun.append((ahead, ahead.compiles, ahead.begin()))
            ahead.compiles = True
        yield
        finished = True
    finally:
        for ahead, compiles, call in begun:
            ahead.compiles = compiles
            ahead.end(call, finished)


def dissolve(model: nn.Module) -> None:
    """Have every layer decode its own weight again."""
    for module in model.modules():
        leave(module)
        module.__dict__.pop(SHARED, None)


def leave(module: nn.Module) -> None:
    """Have a layer decode its own weight again."""
    module.__dict__.pop(AHEAD, None)


_library = torch.library.Library("tersor", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "ahead_linear(Tensor x, int owner, int layer, int rows) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


def _linear(x: Tensor, owner: int, layer: int, rows: int) -> Tensor:
    ahead = _known[owner]
    y = ahead.product(layer, x)
    if y is None:
        y = ahead.layers[layer].alone(x)
    return y


def _linear_fake(x: Tensor, owner: int, layer: int, rows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


for _device in ("CPU", "CUDA"):
    _library.impl("ahead_linear", _linear, _device)  # type: ignore[no-untyped-call]
torch.library.register_fake("tersor::ahead_linear", _linear_fake, lib=_library)
