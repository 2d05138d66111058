"""Layers that are given the same input, multiplied as one: query, key and value; gate and up.

At one token a product is a few microseconds of reading, and a third of one begins and ends before
the memory is up to speed. Siblings' matrices therefore lie one below the other as one matrix
(`Joint`), and one launch multiplies it. Yet the model's code goes on asking three layers:

    parent.forward    a scope (`tersor.nn.scope`): opens the joint, runs the plain forward, closes it
      q_proj(x)       multiplies all of the joint
      k_proj(x)       finds its part ready
      v_proj(x)       finds its part ready
    end               nothing is kept

What is ready is given out once, and only to whoever brings the very tensor that it was made from: the
same object and, where autograd counts, the same version of it. A sibling with another input, or one
that does not come at all (cross-attention, where keys have an input of their own, or none after the
first token), proves the guess wrong: from then on these siblings multiply apart, each its own rows of
the joint matrix, in place. So does a sibling that is called when the parent is not, and all of them
when there are many tokens and nothing is to be won, or where weights are decoded ahead
(`tersor.nn.ahead`). Results are the same bits either way where sums are ordered by columns alone, as
they are in the products for few tokens (`tersor.kernels.multiply`).

One thing is not noticed: a module that writes into the input between two siblings in inference
mode, where no versions are counted, or under `torch.compile`. No model is known to do that.

`torch.compile` follows all of this and sees one product and three slices. Forward hooks were
rejected (they meet accelerate's), so was keeping results by weak references to inputs (dynamo
cannot follow), and leaving equal products to common subexpression elimination (inductor has none
for inference).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.format.errors import UsageError
from tersor.nn.forms import Arrays, Form
from tersor.nn.fused import Fused
from tersor.nn.module import AHEAD
from tersor.nn.product import product, wants_gradient
from tersor.nn.scope import JOINT, open_scope, this_thread

MAX_TOKENS = 64  # beyond, a sibling's product alone keeps the GPU busy


class Ready:
    """During one call of the parent, by `opener`: the siblings' outputs for `input` that were not asked for yet."""

    def __init__(self, opener: int) -> None:
        self.opener = opener  # the thread
        self.input: Tensor | None = None
        self.version = 0
        self.outputs: tuple[Tensor | None, ...] = ()


class Joint(nn.Module):
    """The matrices of `members`, one below the other, as one; a child of each of them."""

    def __init__(self, form: Form, arrays: Arrays, members: Sequence[nn.Module]) -> None:
        super().__init__()
        for name, array in zip(form.names, arrays, strict=True):
            self.register_parameter(name, nn.Parameter(array, requires_grad=False))
        self.form = form
        self.members = tuple(members)  # in a tuple, so that they are not its children
        self.together = True  # until a call shows that their inputs differ
        self.ready: Ready | None = None

    @property
    def arrays(self) -> Arrays:
        """The layout's arrays, of all rows. UsageError if they were offloaded, which nobody would notice."""
        arrays = tuple(getattr(self, name) for name in self.form.names)
        if arrays[0].is_meta:
            raise UsageError(
                "joined weights were offloaded, and whoever brings offloaded weights back does not know of "
                "joints; offload the model before its layout is chosen, or use layout='compact'"
            )
        return arrays

    def take(self, index: int, x: Tensor) -> Tensor | None:
        """The product of member `index` with `x`, made now or before; None if it must multiply alone."""
        ready = self.ready
        if ready is None or ready.opener != this_thread():
            return None
        if not self.together or not 0 < x.numel() <= MAX_TOKENS * self.form.cols:
            return None
        if wants_gradient(x):  # autograd lets nobody write into parts of one result
            return None
        if ready.input is None:
            if self._some_ahead():
                return None
            ready.input, ready.version, ready.outputs = x, _version(x), self._products(x)
        output = ready.outputs[index]
        if ready.input is not x or ready.version != _version(x) or output is None:
            self.ready, self.together = Ready(ready.opener), False
            return None
        ready.outputs = (*ready.outputs[:index], None, *ready.outputs[index + 1 :])
        if all(other is None for other in ready.outputs):
            ready.input, ready.outputs = None, ()
        return output

    def begin(self) -> Any:
        """Before the parent's forward."""
        before = self.ready
        if before is None or before.opener == this_thread():
            self.ready = Ready(this_thread())
        return before

    def end(self, before: Any, finished: bool) -> None:
        """After it: a product that nobody asked for proves the guess wrong. Another thread's says nothing."""
        if self.ready is None or self.ready.opener != this_thread():
            return
        if finished and self.ready.input is not None:
            self.together = False
        self.ready = before

    def _some_ahead(self) -> bool:
        """Whether a member may find its weight decoded ahead, and so never ask for its part."""
        return not torch.compiler.is_compiling() and any(AHEAD in member.__dict__ for member in self.members)

    def _products(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every member's product with `x`, contiguous as the plain layer's."""
        sources: list[Part] = [member.compressed["weight"] for member in self.members]  # type: ignore[index,misc]
        biases: list[Any] = [member.bias for member in self.members]
        heights = [source.form.rows for source in sources]
        if not all(source.multiplies(x) for source in sources):
            # one product per matrix, because cuBLAS sums otherwise for another number of rows
            weights = torch.split(self.form.decode(self.arrays), heights)
            triples = zip(weights, sources, biases, strict=True)
            return tuple(F.linear(x, weight.to(source.dtype), bias) for weight, source, bias in triples)
        bias = None if biases[0] is None else torch.cat(biases)
        y = product(self.form, x, self.arrays, bias, False)
        return tuple(part.contiguous() for part in torch.split(y, heights, dim=-1))


@dataclass(frozen=True)
class Part(Fused):
    """A weight that is rows [first, first + form.rows) of its module's joint matrix; member `index` of it."""

    index: int = 0
    first: int = 0

    def _held(self) -> tuple[str, ...]:
        return tuple(f"{JOINT}.{part}" for part in self.form.names)

    def arrays(self, module: nn.Module) -> Arrays:
        """The joint's arrays, as far as they are this weight's."""
        joint = _joint(module)
        return joint.form.cut(joint.arrays, self.first, self.form.rows)[1]

    def device(self, module: nn.Module) -> torch.device:
        """Where the weight is."""
        joint = _joint(module)
        return joint.get_parameter(joint.form.names[0]).device

    def detach(self, module: nn.Module) -> None:
        """Leave the joint; its memory is freed when the last member has."""
        _joint(module).together = False
        del module._modules[JOINT]

    def linear(self, module: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., cols) -> (..., rows)."""
        taken = _joint(module).take(self.index, x)
        return super().linear(module, x, bias) if taken is None else taken


def join(parent: nn.Module, members: Sequence[nn.Module], form: Form, arrays: Arrays) -> None:
    """Give the layers `members` of `parent`, their own arrays removed, a joint matrix in their place."""
    if arrays[0].is_cuda:
        # a product begins to read its weights before the kernel ahead of it, here what made them, is done
        torch.cuda.current_stream(arrays[0].device).synchronize()
    joint = Joint(form, arrays, members)
    first = 0
    for index, member in enumerate(members):
        compressed: Any = member.compressed
        own: Fused = compressed["weight"]
        member.add_module(JOINT, joint)
        told = {part.name: getattr(own, part.name) for part in fields(own) if part.init}
        compressed["weight"] = Part(**told, index=index, first=first)
        first += own.form.rows
    open_scope(parent)


def _joint(module: nn.Module) -> Joint:
    joint = module._modules[JOINT]
    assert isinstance(joint, Joint)
    return joint


def _version(x: Tensor) -> int:
    """How often `x` was written to, where that is counted: not in inference mode, not in a graph."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version
