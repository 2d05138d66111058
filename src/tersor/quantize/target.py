"""Keeping a promise: the smallest plan whose *measured* loss stays within a bound.

Predicted costs order plans well but are off by a factor, the same for neighbouring plans. So: take the
plan predicted to meet the bound, build it, measure it on held-out text, divide measured by predicted,
correct, repeat. Two or three rounds end within a few per cent of the bound. A plan counts as good only
if its measurement plus `confidence` standard errors is within the bound; the smallest good one wins.
When none is, what remains is to leave everything lossless, and the outcome says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tersor.quantize.allocate import Option, Plan, cost, size, within_cost

log = logging.getLogger(__name__)

CLOSE_ENOUGH = 0.93  # of the bound: a further round could save 0.05 bits per weight at most (KL / 4 per bit)
AIM = 0.97  # of the bound, so that the next round ends below it


@dataclass(frozen=True)
class Measured:
    """A loss and its standard error, in the unit of the bound."""

    value: float
    stderr: float = 0.0


@dataclass(frozen=True)
class Attempt:
    """One plan that was built and measured."""

    plan: Plan
    bits: int
    predicted: float
    measured: Measured
    good: bool


@dataclass(frozen=True)
class Outcome:
    """The plan that keeps the bound, its attempt (None when all is lossless), and all attempts."""

    plan: Plan
    best: Attempt | None
    attempts: list[Attempt]


def reach(
    options: Mapping[str, Sequence[Option]],
    bound: float,
    build: Callable[[Plan], Measured],
    rounds: int = 5,
    confidence: float = 1.0,
) -> Outcome:
    """Find the smallest plan whose loss is at most `bound`.

    `build` quantises the model by a plan and measures the loss that is bounded, on text used for
    nothing else. Every matrix must have a lossless option: the way out that always keeps the bound.
    """
    limit = bound
    attempts: list[Attempt] = []
    for _ in range(rounds):
        plan = within_cost(options, limit)
        if any(plan == attempt.plan for attempt in attempts) or lossless(plan):
            break
        measured = build(plan)
        pessimistic = measured.value + confidence * measured.stderr
        attempt = Attempt(plan, size(plan), cost(plan), measured, pessimistic <= bound)
        attempts.append(attempt)
        log.info("%.6g bits: predicted %.3g, measured %.3g", attempt.bits, attempt.predicted, measured.value)
        if attempt.good and pessimistic >= CLOSE_ENOUGH * bound:
            break
        # a loss below zero (the model got better by chance) says little: be bold, not infinitely so
        limit = attempt.predicted * min(AIM * bound / max(pessimistic, bound / 8), 8.0)
    good = [attempt for attempt in attempts if attempt.good]
    if good:
        best = min(good, key=lambda attempt: attempt.bits)
        return Outcome(best.plan, best, attempts)
    log.warning("no quantised plan keeps the bound %g; everything stays lossless", bound)
    plan = {name: next(o for o in choices if o.method is None) for name, choices in options.items()}
    return Outcome(plan, None, attempts)


def lossless(plan: Plan) -> bool:
    """Whether nothing is quantised."""
    return all(option.method is None for option in plan.values())
