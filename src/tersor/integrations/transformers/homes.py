"""Which parameter of the model each tensor of the checkpoint is.

Checkpoints outlive model code. Transformers therefore keeps, per architecture, a list of
transforms from names on disk to names in the model: *renamings* (`block_sparse_moe.` is
`mlp.` now) and *converters*, which compute (the matrices of all experts, one per tensor on
disk, become one 3-D parameter). Its own function applies them here to the names alone, so no
architecture is named in our code.

Compressed tensors follow renamings. Of the converters one shape is understood, by its
structure: merge a list of modules along a new first dimension, then perhaps concatenate
projections. Its parameter is assembled from parts that stay as they are on disk
(`tersor.nn.experts`). Any other needs the decoded values when loading (`converting.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

_PLAIN_PATH = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Home:
    """Where a checkpoint's tensor goes.

    parameter: the model's name for it, or that of the parameter a converter makes with it;
    converter, pattern: that converter, if any, and which of its patterns matches; renamed: the
    tensor's own name after renamings alone; path: below the parameter's module, where the tensor
    stays a leaf of its own ("3.up_proj.weight") if the converter is a stack of experts.
    """

    parameter: str
    converter: Any = None
    pattern: str = ""
    renamed: str = ""
    path: str | None = None

    @property
    def leaf(self) -> str:
        """The model's name for the tensor itself, once experts are stacked."""
        if self.path is None:
            return self.parameter
        return f"{self.parameter.rpartition('.')[0]}.{self.path}"


class Homes:
    """The transforms of one model, applied to names."""

    def __init__(self, model: Any) -> None:
        transforms = get_model_conversion_mapping(model)
        self.renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self.converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self.by_pattern = {pattern: c for c in self.converters for pattern in c.source_patterns}
        self.prefix = model.base_model_prefix
        self.meta = model.state_dict()

    def find(self, names: Iterable[str]) -> dict[str, Home]:
        """The homes of these tensors; one that has none is left out."""
        found = ((name, self._find(name)) for name in names)
        return {name: home for name, home in found if home is not None}

    def _find(self, name: str) -> Home | None:
        renamed, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self.meta)
        if renamed not in self.meta and name in self.meta:  # as Transformers does: it should not have matched
            renamed, pattern = rename_source_key(name, [], [], self.prefix, self.meta)
        if renamed not in self.meta:
            return None
        if pattern is None:
            return Home(renamed)
        own = self._own_name(name, renamed)
        path = None
        if concatenated(self.by_pattern[pattern]) is not None:
            match = re.search(rf"\.(\d+\.{re.escape(projection(pattern))})$", own)
            path = match[1] if match else None
        return Home(renamed, self.by_pattern[pattern], pattern, own, path)

    def _own_name(self, name: str, parameter: str) -> str:
        """The name after renamings alone, with or without the base model's prefix as its parameter has it."""
        own, _ = rename_source_key(name, self.renamings, [])
        prefix = f"{self.prefix}."
        if parameter.startswith(prefix) and not own.startswith(prefix):
            return prefix + own
        return own if parameter.startswith(prefix) else own.removeprefix(prefix)


def concatenated(converter: Any) -> int | None:
    """The dimension of one expert's matrix along which `converter` joins projections, if it stacks experts.

    None for a converter of any other structure.
    """
    merge, *rest = converter.operations
    if not (type(merge) is MergeModulelist and merge.dim == 0 and len(converter.target_patterns) == 1):
        return None
    if any(type(operation) is not Concatenate or operation.dim < 1 for operation in rest) or len(rest) > 1:
        return None
    owner = converter.target_patterns[0].rpartition(".")[0]
    for pattern in converter.source_patterns:
        before, star, after = _unescaped(pattern).partition(".*.")
        if before != owner or not star or not _PLAIN_PATH.fullmatch(after) or "." not in after:
            return None
    return rest[0].dim - 1 if rest else 0


def projection(pattern: str) -> str:
    """What follows the expert's number in a converter's pattern: "up_proj.weight"."""
    return _unescaped(pattern).partition(".*.")[2]


def _unescaped(pattern: str) -> str:
    """Some patterns escape their dots as regular expressions want it, some do not."""
    return pattern.replace("\\.", ".")
