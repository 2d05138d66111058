"""Compressed tensors that Transformers computes parameters from: decoded while loading.

Some models keep on disk what the code has otherwise: query, key and value as one matrix, say.
Their converters want values. Such tensors are loaded, compressed, into leaves of their own;
when all is read each converter is run, by Transformers' own code, on the decoded tensors, and
the leaves are dropped. The parameters are plain then, and saved plain under their names on
disk: right in every bit, but no smaller in memory, which the log says.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import dot_natural_key

from tersor.format.errors import MissingTensor, UsageError
from tersor.integrations.transformers.homes import Home
from tersor.integrations.transformers.surgery import owner
from tersor.nn import add_leaf, materialize, remove_leaf


@dataclass(frozen=True)
class Conversion:
    """One run of a converter. leaves: for each tensor its name on disk, the pattern it matches, its leaf."""

    parameter: str  # the first that is made
    converter: Any
    leaves: tuple[tuple[str, str, str], ...]

    @property
    def parameters(self) -> list[str]:
        """All that are made."""
        first, *others = self.converter.target_patterns
        return [self.parameter, *(self.parameter.replace(first, other) for other in others)]


def plan(homes: Mapping[str, Home]) -> list[Conversion]:
    """The runs that make something of these tensors."""
    groups: dict[str, list[str]] = {}
    for name in sorted(homes, key=dot_natural_key):
        groups.setdefault(homes[name].parameter, []).append(name)
    return [
        Conversion(
            parameter,
            homes[names[0]].converter,
            tuple((name, homes[name].pattern, homes[name].renamed) for name in names),
        )
        for parameter, names in groups.items()
    ]


def add_leaves(model: Any, conversions: Sequence[Conversion], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Put a plain leaf without data into the model for every tensor of the conversions."""
    ours: set[str] = set()
    for conversion in conversions:
        for name, _, leaf in conversion.leaves:
            path, _, parameter = leaf.rpartition(".")
            if path not in ours and _has_module(model, path):
                operations = ", ".join(
                    type(operation).__name__ for operation in conversion.converter.operations
                )
                raise UsageError(
                    f"tensor {name!r}: Transformers computes {conversion.parameter!r} from it while loading "
                    f"({operations}), which tersor cannot do with compressed tensors; `tersor decompress` the "
                    f"checkpoint and load that"
                )
            if path not in ours:
                add_leaf(model, path, nn.Module())
                ours.add(path)
            plain = nn.Parameter(torch.empty(shapes[name], device="meta"), requires_grad=False)
            model.get_submodule(path).register_parameter(parameter, plain)
    missing = {re.sub(r"\d+", r"\\d+", re.escape(p)) for c in conversions for p in c.parameters}
    known = set(model._keys_to_ignore_on_load_missing or ())
    model._keys_to_ignore_on_load_missing = known | {f"^{pattern}$" for pattern in missing}


def run(model: Any, conversions: Sequence[Conversion], dtypes: Mapping[str, torch.dtype]) -> None:
    """Run the converters on what was loaded into the leaves, and drop these."""
    converters: list[Any] = []
    for conversion in conversions:
        converter = copy.deepcopy(conversion.converter)
        for name, pattern, leaf in conversion.leaves:
            module, parameter = owner(model, leaf)
            if any(part.is_meta for part in module.parameters()):
                raise UsageError(
                    f"tensor {name!r} must be decoded while loading and is offloaded to disk; load the model "
                    f"without offloading, or `tersor decompress` the checkpoint and load that"
                )
            tensor = materialize(getattr(module, parameter)).detach()
            converter.add_tensor(conversion.parameter, name, pattern, tensor)
        made = converter.convert(conversion.parameter, model=model, config=model.config)
        if made.keys() != set(conversion.parameters):
            raise MissingTensor(
                f"parameters {sorted(set(conversion.parameters) ^ made.keys())} were not made"
            )
        for parameter, value in made.items():
            tensor = (value[0] if isinstance(value, list) else value).to(dtypes[parameter])
            at, leaf = owner(model, parameter)
            at.register_parameter(leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        if conversion.converter not in converters:
            converters.append(conversion.converter)
    for path in {leaf.rpartition(".")[0] for conversion in conversions for _, _, leaf in conversion.leaves}:
        remove_leaf(model, path)
    if converters:
        model._weight_conversions = [*(model._weight_conversions or ()), *converters]  # for saving
        logging.getLogger(__name__).warning(
            "%s: some weights were decoded while loading and are plain in memory, because Transformers computes "
            "its parameters from them (%s)",
            type(model).__name__,
            ", ".join(sorted({pattern for converter in converters for pattern in converter.source_patterns})),
        )


def _has_module(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
