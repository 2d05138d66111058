"""From a goal to the attempt that reaches it.

A number of bits or bytes is reached by allocation alone: what every matrix costs at every candidate is
measured once, the best split is made, and made again a little tighter should outliers take more room
than they did when they were tried. A bound on the loss is reached by measuring whole models until the
smallest that keeps it is found (`quantize.target`); if none does, nothing is quantised.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.format.errors import UsageError
from tersor.pipeline.near_lossless.attempts import Attempt, Attempts, HeldOut, Step, parse_method, plain
from tersor.pipeline.near_lossless.goal import Goal
from tersor.quantize.allocate import Option, Plan, size, smallest, within_bits
from tersor.quantize.method import Method
from tersor.quantize.sensitivity import measure_options
from tersor.quantize.stream import Job
from tersor.quantize.target import Measured, reach

if TYPE_CHECKING:
    pass

_PROBES = 8  # sequences on which sensitivity is probed
_ROUNDS = 5  # whole models that are built for one goal
_CONFIDENCE = 1.0  # standard errors that a measured loss must stay below a bound

Options = dict[str, list[Option]]


@dataclass(frozen=True)
class Tried:
    """One attempt of a search, for the report."""

    bits_per_weight: float
    held_out: HeldOut | None


@dataclass(frozen=True)
class Found:
    """The attempt that reaches the goal; None when only a lossless model does."""

    attempt: Attempt | None
    tried: tuple[Tried, ...]


class Search:
    """The search for one goal over the matrices `names`."""

    def __init__(self, attempts: Attempts, names: Sequence[str], lossless_bits: float) -> None:
        """lossless_bits: what a weight takes that is not quantised."""
        self.attempts, self.names, self.lossless_bits = attempts, names, lossless_bits
        self.tried: list[Tried] = []

    def run(self, goal: Goal, weights: int, other_bytes: int) -> Found:
        """Reach `goal`; the matrices have so many `weights`, everything else takes `other_bytes`."""
        if goal.kind == "method":
            method = goal.methods[0]
            allowed = [name for name in self.names if self.attempts.opened.allows(name, method)]
            return Found(self._attempt(dict.fromkeys(allowed, method)), tuple(self.tried))
        options = self._options(goal.methods)
        if goal.bound:
            return self._bounded(goal, options)
        limit = goal.value * weights if goal.kind == "bits" else 8 * (goal.value - other_bytes)
        return Found(self._within(options, limit, goal), tuple(self.tried))

    def _within(self, options: Options, limit: float, goal: Goal) -> Attempt:
        """The attempt of least predicted loss that takes at most `limit` bits, lossless matrices counted."""
        allowed = limit
        for _ in range(_ROUNDS):
            plan = within_bits(options, allowed)
            if size(plan) > allowed:
                least = size(smallest(options))
                raise UsageError(
                    f"{goal} cannot be had: at their smallest the model's matrices take {least / 8:,.0f} bytes, and "
                    f"{max(limit, 0) / 8:,.0f} are left for them; ask for more"
                )
            attempt = self._attempt(assigned(plan))
            kept = sum(option.bits for option in plan.values() if option.method is None)
            if attempt.bits + kept <= limit:
                return attempt
            allowed -= 1.1 * (attempt.bits + kept - limit)
        raise UsageError(f"{goal} was missed {_ROUNDS} times by a little; ask for a little more")

    def _bounded(self, goal: Goal, options: Options) -> Found:
        made: list[tuple[Plan, Attempt]] = []

        def build(plan: Plan) -> Measured:
            attempt = self._attempt(assigned(plan))
            made.append((plan, attempt))
            held_out = attempt.held_out
            assert held_out is not None
            if goal.kind == "kl":
                return Measured(held_out.kl, held_out.kl_stderr)
            return Measured(held_out.perplexity_loss, held_out.perplexity_loss_stderr)

        outcome = reach(options, goal.value, build, _ROUNDS, _CONFIDENCE)
        best = next((a for plan, a in made if outcome.best and plan == outcome.best.plan), None)
        return Found(best, tuple(self.tried))

    def _attempt(self, assignment: dict[str, Method]) -> Attempt:
        attempt = self.attempts.make(assignment, f"quantising, attempt {len(self.tried) + 1}")
        self.tried.append(Tried(attempt.bits / max(attempt.weights, 1), attempt.held_out))
        return attempt

    def _options(self, candidates: Sequence[Method]) -> Options:
        """What every matrix can become, measured, or as an earlier run measured it."""
        kept = self.attempts.scratch / "options.json"
        if kept.exists():
            return _read_options(kept)
        opened, on_step = self.attempts.opened, self.attempts.on_step
        known = set(self.names)
        on_step(Step(f"trying {len(candidates)} settings on every matrix", 0, len(known)))
        options = measure_options(
            opened.model,
            self.attempts.sequences,
            [sequence[None] for sequence in self.attempts.sequences[:_PROBES]],
            candidates,
            Job(
                lambda name: candidates[0] if name in known else None,
                device=self.attempts.device,
                served=opened.served,
            ),
            self.lossless_bits,
            lambda name, done, total: on_step(Step("measuring sensitivity", done, total)),
        )
        options = {
            name: [o for o in choices if o.method is None or opened.allows(name, o.method)]
            for name, choices in options.items()
        }
        _write_options(kept, options)
        return options


def assigned(plan: Plan) -> dict[str, Method]:
    """The matrices that a plan quantises, and how."""
    return {name: option.method for name, option in plan.items() if option.method is not None}


def _write_options(path: Path, options: Options) -> None:
    rows = {
        name: [{**asdict(o), "method": o.method and plain({"": o.method})[""]} for o in choices]
        for name, choices in options.items()
    }
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(rows))
    scratch.replace(path)


def _read_options(path: Path) -> Options:
    return {
        name: [
            Option(row["method"] and parse_method(row["method"]), row["bits"], row["cost"]) for row in rows
        ]
        for name, rows in json.loads(path.read_text()).items()
    }
