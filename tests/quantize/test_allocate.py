"""Splitting bits over matrices, against every possible split; keeping a bound, against a scripted model."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch

from tersor.quantize.allocate import (
    Option,
    Plan,
    cost,
    frontier,
    hull,
    size,
    smallest,
    within_bits,
    within_cost,
)
from tersor.quantize.settings import preset
from tersor.quantize.target import Measured, lossless, reach

Options = dict[str, list[Option]]


def ladder(sensitivity: float, weights: int = 1000, seed: int = 0) -> list[Option]:
    """2 to 8 bits, error falling about fourfold per bit, and lossless."""
    noise = random.Random(seed)
    quantised = [
        Option(preset("4-bit", bits=b), b * weights, sensitivity * 4.0**-b * noise.uniform(0.7, 1.4))
        for b in range(2, 9)
    ]
    return [*quantised, Option(None, 11 * weights, 0.0)]


def model(count: int, seed: int = 0) -> Options:
    noise = random.Random(seed)
    return {f"m{i}": ladder(10 ** noise.uniform(-2, 1), noise.choice([500, 1000]), i) for i in range(count)}


def every(options: Options) -> list[Plan]:
    return [dict(zip(options, choice, strict=True)) for choice in itertools.product(*options.values())]


def test_the_hull_is_convex_and_holds_the_extremes() -> None:
    for seed in range(20):
        options = [*ladder(1.0, seed=seed), Option(preset("3-bit"), 3500, 1.0)]  # the last is no good
        line = hull(options)
        gains = [(a.cost - b.cost) / (b.bits - a.bits) for a, b in itertools.pairwise(line)]
        assert gains == sorted(gains, reverse=True)
        assert line[0].bits == 2000
        assert line[-1].cost == 0
        assert all(o.bits != 3500 for o in line)


@pytest.mark.parametrize("seed", range(5))
def test_every_total_on_the_frontier_is_optimal(seed: int) -> None:
    options = model(4, seed)
    plans = [(size(plan), cost(plan)) for plan in every(options)]
    plan = smallest(options)
    for name, option in [("", None), *frontier(options)]:
        if option is not None:
            plan[name] = option
        best = min(c for s, c in plans if s <= size(plan))
        assert cost(plan) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_is_kept_and_nearly_spent(seed: int) -> None:
    options = model(40, seed)
    weights = sum(choices[0].bits // 2 for choices in options.values())
    for budget in (2.0, 3.3, 4.5, 7.9, 11.0):
        plan = within_bits(options, budget * weights)
        assert (budget - 0.1) * weights <= size(plan) <= budget * weights
        if budget < 9:
            assert cost(plan) <= sum(choices[int(budget) - 2].cost for choices in options.values())


def test_a_cost_is_kept_with_the_fewest_bits() -> None:
    options = model(4)
    for limit in (1.0, 1e-2, 1e-4):
        plan = within_cost(options, limit)
        assert cost(plan) <= limit
        best = min(size(p) for p in every(options) if cost(p) <= limit)
        assert size(plan) <= best + 1000 * 3  # one step of the largest matrix
    assert lossless(within_cost(options, 0.0))


@pytest.mark.parametrize("factor", [0.2, 1.0, 1.7, 6.0])
@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_a_bound_is_kept_however_wrong_the_prediction_is(factor: float, bound: float) -> None:
    options = model(60)
    outcome = reach(options, bound, lambda plan: Measured(factor * cost(plan) ** 1.05, 0.01 * bound))
    assert outcome.best is not None
    assert outcome.best.measured.value + outcome.best.measured.stderr <= bound
    assert outcome.best.measured.value > 0.7 * bound
    assert outcome.best.bits == min(a.bits for a in outcome.attempts if a.good)


def test_a_bound_that_nothing_keeps_leaves_everything_lossless() -> None:
    options = model(10)
    outcome = reach(options, 0.01, lambda plan: Measured(1.0))
    assert outcome.best is None
    assert lossless(outcome.plan)
    assert size(outcome.plan) == sum(choices[-1].bits for choices in options.values())
    assert outcome.attempts
    assert not any(attempt.good for attempt in outcome.attempts)


def test_a_measurement_must_be_certain_enough() -> None:
    options = model(60)
    sure = reach(options, 0.1, lambda plan: Measured(cost(plan), 0.0))
    unsure = reach(options, 0.1, lambda plan: Measured(cost(plan), 0.03), confidence=2.0)
    assert sure.best is not None and unsure.best is not None
    assert unsure.best.measured.value + 0.06 <= 0.1
    assert unsure.best.bits > sure.best.bits


def test_sensitivity_is_measured_where_it_matters() -> None:
    transformers = pytest.importorskip("transformers")
    from tersor.quantize.sensitivity import measure_options
    from tersor.quantize.stream import Job

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    net = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # make one matrix matter a great deal and another hardly
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter *= 5
        net.model.layers[0].mlp.down_proj.weight *= 3
        net.model.layers[1].mlp.down_proj.weight *= 0.01
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ids = torch.randint(0, 64, (6, 32), generator=torch.Generator().manual_seed(0))
    base = preset("4-bit")
    candidates = [replace(base, bits=b) for b in (3, 4, 6)]
    options = measure_options(net, ids[:4], [ids[4:5], ids[5:]], candidates, Job(lambda name: base))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert len(options) == 14
    for choices in options.values():
        assert [o.method for o in choices] == [*candidates, None]
        costs = [o.cost for o in choices]
        assert costs == sorted(costs, reverse=True) and costs[-1] == 0
        assert choices[0].bits < choices[1].bits < choices[2].bits < choices[3].bits
    first, last = (options[f"model.layers.{i}.mlp.down_proj.weight"][0].cost for i in (0, 1))
    assert first > 100 * last > 0
