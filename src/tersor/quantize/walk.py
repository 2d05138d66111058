"""Walking through a model block by block, with the calibration activations at hand.

At each stop the inputs of one block are known for every sequence, and the block is on the device. The
caller looks at it, and may change its weights. The walk then runs the block as it is now; its outputs
are the inputs of the next. One block and one sequence are on the device at a time; hidden states wait in
host memory. So a GPU needs room for a block and its Hessians, not for the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.format.errors import UsageError
from tersor.quantize.blocks import Target, find_stacks, find_targets
from tersor.quantize.capture import Calls, capture, hidden_of, move
from tersor.quantize.lazy import Lazy
from tersor.quantize.observe import Observer

log = logging.getLogger(__name__)

Run = Callable[[Tensor], object]


@dataclass(frozen=True)
class Stop:
    """One block of a stack, on its device, and the calls it will get."""

    name: str
    block: nn.Module
    number: int
    calls: Calls
    device: torch.device | str

    def outputs(self) -> Iterator[Tensor]:
        """The hidden states that the block, as it is now, gives: one sequence (1, L, D) at a time."""
        for hidden, rest in zip(self.calls.hidden, self.calls.rest, strict=True):
            args, kwargs = move(rest[self.number], self.device)
            with torch.no_grad():
                output = hidden_of(self.block(hidden.to(self.device), *args, **kwargs))
            yield output

    def targets(self) -> list[Target]:
        """The matrices of the block, by their names in the model."""
        return find_targets(self.block, self.name)

    def observe(self, targets: list[Target]) -> Observer:
        """Run all sequences and sum the Hessians of `targets`."""
        observer = Observer(targets)
        with observer:
            for _ in self.outputs():
                observer.next_sequence()
        return observer


def walk(
    model: nn.Module,
    sequences: Tensor,
    device: torch.device | str = "cpu",
    run: Run | None = None,
    lazy: Lazy | None = None,
) -> Iterator[Stop]:
    """Stop at every block of every stack of `model`, calibrated on `sequences` (N, L).

    `run` feeds one sequence (1, L) to the model; by default as `input_ids`, without a cache. `lazy` gives
    blocks their weights, if they have none. Raises `UsageError` when the model has no blocks or a
    block's output is not finite.
    """
    model.eval()
    experts = getattr(model, "set_experts_implementation", None)
    if callable(experts):
        experts("eager")  # the one that calls linear() expert by expert
    home = _home(model)
    run = run or (lambda ids: model(input_ids=ids.to(home), use_cache=False))
    for stack in find_stacks(model):
        first = f"{stack.name}.0"
        if lazy:  # the capture runs the first block once
            lazy.enter(first, stack.blocks[0], home)
        calls = capture(run, stack.blocks, sequences)
        if not calls.hidden:  # a vision tower, when only text calibrates
            log.warning(
                "%s: no calibration input reaches these blocks; they are left as they are", stack.name
            )
            continue
        for number, block in enumerate(stack.blocks):
            stop = Stop(f"{stack.name}.{number}", block, number, calls, device)
            if lazy and number:
                lazy.enter(stop.name, block, device)
            block.to(device)
            yield stop
            for i, hidden in enumerate(stop.outputs()):
                if not torch.isfinite(hidden).all():
                    raise UsageError(
                        f"block {stop.name} gives NaN or infinite activations on calibration sequence {i}; "
                        f"check the weights and the calibration text"
                    )
                calls.hidden[i] = hidden.cpu()
            if lazy:
                lazy.leave(stop.name, block)
            else:
                block.to(home)


def _home(model: nn.Module) -> torch.device:
    """Where the model lives: the device of its first weight that has one."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))
