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

from tersor.format.parameters import SpqrParameters
from tersor.nn.forms import Arrays
from tersor.nn.fused import Fused
from tersor.nn.joint import Part, join
from tersor.nn.linear import CompressedLinear
from tersor.nn.stored import Stored

_ROLES = (
    ("q", "k", "v"),
    ("query", "key", "value"),
    ("gate", "up"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
_SUFFIX = re.compile(r"_(proj|lin|linear|layer)$")


Group = tuple[nn.Module, list[CompressedLinear]]  # a parent, and children of it


def groups(model: nn.Module, wanted: set[CompressedLinear]) -> list[Group]:
    """The layers of `wanted` that by their names are given one input."""
    return [(parent, members) for parent in model.modules() for members in _groups(parent, wanted)]


def common_units(found: list[Group]) -> dict[nn.Module, int]:
    """For each member of a group of quantised weights that differ in their unit only: the smallest."""
    units: dict[nn.Module, int] = {}
    for _, members in found:
        sources = [member.compressed["weight"] for member in members]
        parameters = [s.entry.parameters for s in sources if isinstance(s, Stored)]
        spqr = [p for p in parameters if isinstance(p, SpqrParameters)]
        if len(spqr) == len(members) and len({(p.bits, p.group, p.rows, p.stat_bits) for p in spqr}) == 1:
            units |= dict.fromkeys(members, min(p.unit for p in spqr))
    return units


def join_groups(found: list[Group]) -> int:
    """Join the groups whose weights are `Fused`, lie apart and can be one matrix; returns how many were joined.

    Beside the model, memory for one group is needed.
    """
    made = 0
    for parent, members in found:
        sources = [s for member in members if isinstance(s := member.compressed["weight"], Fused)]
        if len(sources) < len(members) or any(isinstance(source, Part) for source in sources):
            continue
        pile = [source.arrays(member) for source, member in zip(sources, members, strict=True)]
        if not _alike(members, sources, pile):
            continue
        form, whole = sources[0].form.join(pile, sum(source.form.rows for source in sources))
        del pile
        for source, member in zip(sources, members, strict=True):
            source.detach(member)
        join(parent, members, form, whole)
        made += 1
    return made


def _groups(parent: nn.Module, wanted: set[CompressedLinear]) -> Iterator[list[CompressedLinear]]:
    by_role = {_SUFFIX.sub("", name): child for name, child in parent.named_children()}
    for roles in _ROLES:
        children = [by_role.get(role) for role in roles]
        members = [c for c in children if isinstance(c, CompressedLinear) and c in wanted]
        if len(members) == len(roles):
            yield members


def _alike(members: list[CompressedLinear], sources: list[Fused], pile: list[Arrays]) -> bool:
    """Whether they make one matrix: all biases or none, on one device, multiplied alike, forms that join."""
    kinds = {
        (member.bias is None, arrays[0].device, source.dtype, source.exact)
        for member, source, arrays in zip(members, sources, pile, strict=True)
    }
    pairs = pairwise(zip(sources, pile, strict=True))
    return len(kinds) == 1 and all(a.form.joins(ours, b.form, theirs) for (a, ours), (b, theirs) in pairs)
