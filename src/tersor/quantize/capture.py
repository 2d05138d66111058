"""What the model passes to its blocks: captured once, replayed block by block.

Besides the hidden state a block is called with masks, positions, rotary tables, an encoder's output.
None of these depends on the hidden state, so one pass in which every block only records its call and
hands its input on finds them all, for each block its own (sliding and full attention differ). Tensors
that are the same for every sequence are kept once. All of it waits in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Tree = Any  # nested tuples, lists and dicts of tensors and other values


class _Finished(Exception):
    """Raised out of the model once its last block was called."""


class Calls:
    """Per sequence the hidden state (1, L, D), and per sequence and block the other arguments."""

    def __init__(self) -> None:
        self.hidden: list[Tensor] = []
        self.rest: list[list[tuple[tuple[Tree, ...], dict[str, Tree]]]] = []


def move(tree: Tree, device: torch.device | str) -> Tree:
    """The same tree with every tensor on `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if type(tree) in (tuple, list):
        return type(tree)(move(x, device) for x in tree)
    if type(tree) is dict:
        return {key: move(x, device) for key, x in tree.items()}
    return tree


def same(a: Tree, b: Tree) -> bool:
    """Whether two trees hold equal values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) in (tuple, list):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a is b or a == b)


def split_call(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden state of a block's call, and everything else."""
    if args:
        return args[0], args[1:], kwargs
    kwargs = dict(kwargs)
    return kwargs.pop("hidden_states"), (), kwargs


def hidden_of(output: Any) -> Tensor:
    """The hidden state in what a block returns: the tensor itself or the first of a tuple."""
    found = output if isinstance(output, Tensor) else output[0]
    assert isinstance(found, Tensor)
    return found


@contextmanager
def _forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run `forward` in place of the block's own; its other attributes stay visible to the model."""
    hooked = block.__dict__.get("forward")  # accelerate's hooks live there
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if hooked is not None:
            block.forward = hooked


def capture(run: Callable[[Tensor], object], blocks: list[nn.Module], sequences: Tensor) -> Calls:
    """Record the calls of `blocks` when `run` is given each of `sequences` (N, L) as (1, L).

    `run` starts the whole model; only what comes before and between the blocks is executed, and the
    first block once, to see in which form blocks return their result.
    """
    calls = Calls()
    wrap: list[Callable[[Tensor], Any]] = []

    def recorder(number: int, block: nn.Module) -> Callable[..., Any]:
        original = block.forward

        def record(*args: Any, **kwargs: Any) -> Any:
            hidden, others, named = split_call(args, kwargs)
            if number == 0:
                calls.hidden.append(hidden.detach().cpu())
                calls.rest.append([])
            rest = (move(others, "cpu"), move(named, "cpu"))
            first = calls.rest[0][number] if len(calls.rest) > 1 else None
            calls.rest[-1].append(first if first is not None and same(first, rest) else rest)
            if number == len(blocks) - 1:
                raise _Finished
            if not wrap:
                plain = isinstance(original(*args, **kwargs), Tensor)
                wrap.append((lambda x: x) if plain else (lambda x: (x,)))
            return wrap[0](hidden)

        return record

    with torch.no_grad(), ExitStack() as patches:
        for number, block in enumerate(blocks):
            patches.enter_context(_forward(block, recorder(number, block)))
        for sequence in sequences:
            try:
                run(sequence[None])
            except _Finished:
                continue
    return calls
