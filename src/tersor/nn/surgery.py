"""Turning modules into compressed ones and back, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tersor.format.manifest import TensorEntry
from tersor.nn.ahead import leave
from tersor.nn.deferred import Source
from tersor.nn.embedding import CompressedEmbedding
from tersor.nn.experts import CompressedExperts, ExpertStack, StoredWeight
from tersor.nn.linear import CompressedLinear
from tersor.nn.module import CompressedModule, CompressedParameter
from tersor.nn.stored import Stored

_OWN_CLASSES: tuple[type[CompressedModule], ...] = (CompressedLinear, CompressedEmbedding)


def compress(
    module: nn.Module,
    name: str,
    entry: TensorEntry,
    parts: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> None:
    """Replace the parameter `name` of `module` by its stored form.

    entry: what the parameter was; parts: the arrays that `stored_tensors(name, entry)`
    declares, by name (the guard is not wanted); dtype: what to decode to, if not what it was.
    """
    source = Stored.of(name, entry)
    if dtype is not None:
        source = source.cast(dtype)
    source.attach(module, parts)
    _become_compressed(module, source)


def stack_experts(module: nn.Module, stacks: Sequence[ExpertStack], leaves: Mapping[str, Tensor]) -> None:
    """Replace the 3-D parameters that `stacks` describe by the plain tensors they are made of.

    leaves: path below `module`, parameter name included ("3.up_proj.weight") -> tensor.
    Each can then be compressed on its own.
    """
    for path, tensor in leaves.items():
        parent, _, leaf = path.rpartition(".")
        add_leaf(module, parent, StoredWeight(leaf, tensor))
    for stack in stacks:
        module._parameters.pop(stack.name, None)
        _become_compressed(module, stack)


def is_compressed(module: nn.Module, name: str | None = None) -> bool:
    """Whether the parameter `name` of `module`, or any, is stored compressed."""
    return isinstance(module, CompressedModule) and (name is None or name in module.compressed)


def restore(module: CompressedModule) -> None:
    """Decode every parameter of `module` and make it the plain module it was."""
    leave(module)
    sources = module.compressed
    weights = {name: source.restore(module) for name, source in sources.items()}
    del module.compressed
    plain: Any = module
    plain.__class__ = module.plain_class
    for name, weight in weights.items():
        plain.register_parameter(name, nn.Parameter(weight, requires_grad=weight.is_floating_point()))


@cache
def compressed_class(plain: Any, names: tuple[str, ...], stacked: bool = False) -> type[CompressedModule]:
    """The subclass of the module class `plain` in which the parameters `names` (sorted) decode when read.

    stacked: some of them are stacks of experts.
    """
    for own in _OWN_CLASSES if names == ("weight",) else ():
        if plain is own.plain_class:
            return own
    bases: tuple[type, ...] = (CompressedExperts if stacked else CompressedModule, plain)
    for own in _OWN_CLASSES if "weight" in names else ():
        if issubclass(plain, own.plain_class):
            bases = (plain, own)  # own.forward takes the place of its plain_class.forward, below T's
    attributes: dict[str, Any] = {name: CompressedParameter(name) for name in names}
    attributes |= {"plain_class": plain, "__module__": plain.__module__, "__doc__": plain.__doc__}
    # T's own name: libraries match modules by it (layers not to split, architectures to save)
    return type(plain.__name__, bases, attributes)


def blank(plain: Any, names: tuple[str, ...], stacked: bool) -> CompressedModule:
    """An instance of `compressed_class` without state, for copy and pickle to fill."""
    made = compressed_class(plain, names, stacked)
    return made.__new__(made)


def _become_compressed(module: nn.Module, source: Source) -> None:
    name: str = source.name
    plain: Any = module.plain_class if isinstance(module, CompressedModule) else type(module)
    compressed: dict[str, Source] = module.compressed if isinstance(module, CompressedModule) else {}
    compressed[name] = source
    changed: Any = module
    stacked = any(isinstance(source, ExpertStack) for source in compressed.values())
    changed.__class__ = compressed_class(plain, tuple(sorted(compressed)), stacked)
    changed.compressed = compressed


def add_leaf(module: nn.Module, path: str, leaf: nn.Module) -> None:
    """Put `leaf` at `path` below `module`, with empty containers on the way."""
    first, _, rest = path.partition(".")
    if not rest:
        module.add_module(first, leaf)
        return
    if first not in module._modules:
        module.add_module(first, nn.Module())
    add_leaf(module.get_submodule(first), rest, leaf)
