"""Which linear layers are given the same input: found by their names' roles and their matrices' sizes.

Nothing in a model says so outright. But model code names projections by what they are for, and some
roles share their input by what attention and gated feed-forward layers are. A guess that is
wrong (cross-attention takes keys from elsewhere) costs one product; `tersor.nn.joint` notices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from tersor.nn.fused import Fused
from tersor.nn.joint import Part, join
from tersor.nn.linear import CompressedLinear

_ROLES = (
    ("q", "k", "v"),
    ("query", "key", "value"),
    ("gate", "up"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
_SUFFIX = re.compile(r"_(proj|lin|linear|layer)$")


def join_siblings(model: nn.Module, wanted: set[nn.Module]) -> int:
    """Join the layers of `wanted` that lie apart and can be multiplied as one; returns how many groups were made.

    wanted: linear layers whose weights are `Fused`. Beside the model, memory for one group is needed.
    """
    made = 0
    for parent in list(model.modules()):
        for members in _groups(parent, wanted):
            sources = [_own(member) for member in members]
            arrays = [source.arrays(member) for source, member in zip(sources, members, strict=True)]
            rows = sum(source.form.rows for source in sources)
            form, whole = sources[0].form.join(arrays, rows)
            del arrays
            for source, member in zip(sources, members, strict=True):
                source.detach(member)
            join(parent, members, form, whole)
            made += 1
    return made


def _groups(parent: nn.Module, wanted: set[nn.Module]) -> Iterator[list[CompressedLinear]]:
    by_role = {_SUFFIX.sub("", name): child for name, child in parent.named_children()}
    for roles in _ROLES:
        children = [by_role.get(role) for role in roles]
        members = [c for c in children if isinstance(c, CompressedLinear) and c in wanted]
        if len(members) == len(roles) and _alike(members):
            yield members


def _alike(members: list[CompressedLinear]) -> bool:
    """Whether they are plain `Fused` ones that make one matrix: all biases or none, on one device, multiplied alike."""
    sources = [_own(member) for member in members]
    first = sources[0]
    return (
        not any(isinstance(source, Part) for source in sources)
        and all(a.form.joins(b.form) for a, b in pairwise(sources))
        and len({member.bias is None for member in members}) == 1
        and len({source.device(member) for source, member in zip(sources, members, strict=True)}) == 1
        and all((source.dtype, source.exact) == (first.dtype, first.exact) for source in sources)
    )


def _own(member: CompressedLinear) -> Fused:
    source = member.compressed["weight"]
    assert isinstance(source, Fused)
    return source
