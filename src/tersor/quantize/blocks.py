"""Finding what to quantise by structure, so that no architecture needs to be listed.

A transformer's blocks are a `ModuleList` of modules of one class that holds most of the model's
matrices. (An encoder and a decoder are two such lists, worked one after the other; a list of experts
lies inside a block and is none.) Inside a block two things are matrices: the weight of an `nn.Linear`,
and each slice of a three-dimensional parameter, as which Transformers 5 fuses the experts of a
mixture. Whether a slice really is applied as `x @ slice.T` shows when it is used (`observe.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tersor.format.errors import UsageError

LEAST_WEIGHTS = 4096  # as in FORMAT.md: below it there is nothing to save
LEAST_OUTPUTS = 32  # routers and gates: few outputs, and each decides much


@dataclass(frozen=True)
class Stack:
    """One list of blocks, in order of execution."""

    name: str
    blocks: list[nn.Module]


@dataclass(frozen=True)
class Target:
    """One matrix to quantise; `parameter[index]` when it is a slice."""

    name: str
    parameter: nn.Parameter
    index: int | None = None

    @property
    def weight(self) -> Tensor:
        """The (R, C) matrix, sharing the parameter's memory."""
        return self.parameter.detach() if self.index is None else self.parameter.detach()[self.index]


def find_stacks(model: nn.Module) -> list[Stack]:
    """The model's stacks of blocks, outermost only. Raises `UsageError` when there is none."""
    stacks: list[Stack] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(stack.name + ".") for stack in stacks)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            same_class = len({type(block) for block in module}) == 1
            if same_class and all(find_targets(block) for block in module):
                stacks.append(Stack(name, list(module)))
    if not stacks:
        raise UsageError(
            f"{type(model).__name__} has no list of blocks with linear layers; nothing to quantise"
        )
    return stacks


def find_targets(block: nn.Module, prefix: str = "") -> list[Target]:
    """Every matrix of a block that is worth quantising, in order of definition."""
    targets = []
    for name, module in block.named_modules(prefix=prefix):
        for leaf, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{leaf}" if name else leaf
            if parameter.numel() < LEAST_WEIGHTS:
                continue
            if parameter.ndim == 3:
                targets += [Target(f"{full}.{i}", parameter, i) for i in range(len(parameter))]
            elif isinstance(module, nn.Linear) and leaf == "weight" and len(parameter) >= LEAST_OUTPUTS:
                targets.append(Target(full, parameter))
    return targets
