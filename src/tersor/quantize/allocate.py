"""Who gets how many bits: the cheapest choice for each matrix that keeps a total.

Every matrix has options, each with a size in bits and a predicted cost (KL divergence in nats that this
matrix alone adds; small errors of different matrices add up). Only options on the lower convex hull of
size against cost can be part of an optimal split, and along the hull each further bit buys less. So all
steps of all matrices, sorted by what a bit buys, are taken from the best on: the greedy choice is optimal
for every total it passes through, and within one step of optimal between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tersor.quantize.integers import IntegerSettings
from tersor.quantize.settings import Settings


@dataclass(frozen=True)
class Option:
    """One way to store one matrix."""

    method: Settings | IntegerSettings | None  # None keeps it lossless
    bits: int  # of the whole matrix
    cost: float  # predicted KL, nats per token


Plan = dict[str, Option]


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, by rising size and falling cost."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bits, o.cost)):
        if kept and option.cost >= kept[-1].cost:
            continue
        while len(kept) > 1 and _gain(kept[-2], option) >= _gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(option)
    return kept


def _gain(a: Option, b: Option) -> float:
    """Cost saved per bit by going from a to b."""
    return (a.cost - b.cost) / max(b.bits - a.bits, 1)


def frontier(options: Mapping[str, Sequence[Option]]) -> list[tuple[str, Option]]:
    """All worthwhile steps (matrix, what it becomes), best first; they start at each hull's smallest."""
    steps = []
    for name, choices in options.items():
        line = hull(choices)
        steps += [(_gain(a, b), name, b) for a, b in pairwise(line)]
    return [(name, option) for _, name, option in sorted(steps, key=lambda s: (-s[0], s[1], s[2].bits))]


def smallest(options: Mapping[str, Sequence[Option]]) -> Plan:
    """Every matrix at its smallest worthwhile option."""
    return {name: hull(choices)[0] for name, choices in options.items()}


def within_bits(options: Mapping[str, Sequence[Option]], bits: float) -> Plan:
    """The plan of least predicted cost whose size is at most `bits`; the smallest plan if none is."""
    plan = smallest(options)
    left = bits - size(plan)
    stuck: set[str] = set()
    for name, option in frontier(options):
        more = option.bits - plan[name].bits
        if name in stuck or more > left:
            stuck.add(name)  # later steps of this matrix build on this one
        else:
            plan[name] = option
            left -= more
    return plan


def within_cost(options: Mapping[str, Sequence[Option]], limit: float) -> Plan:
    """The smallest plan along the frontier whose predicted cost is at most `limit`; else the best one."""
    plan = smallest(options)
    total = cost(plan)
    for name, option in frontier(options):
        if total <= limit:
            break
        total += option.cost - plan[name].cost
        plan[name] = option
    return plan


def size(plan: Plan) -> int:
    """Bits of all matrices together."""
    return sum(option.bits for option in plan.values())


def cost(plan: Plan) -> float:
    """Predicted KL of all matrices together."""
    return sum(option.cost for option in plan.values())
