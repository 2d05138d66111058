"""Renamings that reach the parts of a compressed tensor.

Some of Transformers' renamings end with a whole name: GraniteMoE's `input_linear.weight` on
disk is `experts.gate_up_proj` in the model. Since 5.2x such a pattern ends on the boundary of
a name, so `input_linear.weight_tiles` would keep its old name, loading and saving. Each gets
likes of itself for the parts. (5.17 has no such boundary; there the likes find nothing to do.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers.core_model_loading import WeightRenaming

from tersor.format.layout import SUFFIXES


def with_parts(transforms: Sequence[Any]) -> list[Any]:
    """The transforms, each renaming of a whole name followed by its likes for the parts of tensors."""
    known = {tuple(transform.source_patterns) for transform in transforms}
    result: list[Any] = []
    for transform in transforms:
        result.append(transform)
        if type(transform) is not WeightRenaming or not _names_whole(transform):
            continue
        for suffix in SUFFIXES:
            like = WeightRenaming(
                [_extended(pattern, suffix) for pattern in transform._original_source_patterns],
                [_extended(pattern, suffix) for pattern in transform._original_target_patterns],
            )
            like.scope_prefix, like.base_model_prefix = transform.scope_prefix, transform.base_model_prefix
            if tuple(like.source_patterns) not in known:
                result.append(like)
    return result


def _names_whole(transform: Any) -> bool:
    """Whether its patterns end with a letter or digit, and are not for parts themselves."""
    patterns = [*transform._original_source_patterns, *transform._original_target_patterns]
    return all(re.search(r"[a-zA-Z0-9]\$?$", p) and not p.rstrip("$").endswith(SUFFIXES) for p in patterns)


def _extended(pattern: str, suffix: str) -> str:
    return f"{pattern[:-1]}{suffix}$" if pattern.endswith("$") else pattern + suffix
