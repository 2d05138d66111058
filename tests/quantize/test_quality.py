"""On a trained model: SpQR better than GPTQ better than rounding, at fewer bits; a bound that holds.

The text is the model's own: half of it calibrates, the other half is where divergence is measured.
"""

from __future__ import annotations

import math
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tersor
from tersor.codec.quantized.matrix import Bits
from tersor.pipeline.evaluate_text import divergence
from tersor.quantize.allocate import Plan, size, within_bits
from tersor.quantize.integers import IntegerSettings
from tersor.quantize.method import Method
from tersor.quantize.sensitivity import measure_options
from tersor.quantize.settings import gptq, preset, rtn
from tersor.quantize.stream import Job, quantize_model
from tersor.quantize.target import Measured, reach

transformers = pytest.importorskip("transformers")

MODEL = Path(tersor.__file__).parent / "demo_model"


def load() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@cache
def text() -> tuple[Tensor, Tensor]:
    """Calibration (24, 160) and evaluation (12, 160) tokens, sampled from the model."""
    torch.manual_seed(0)
    model = load()
    start = torch.randint(3, model.config.vocab_size, (36, 1))
    ids = model.generate(start, do_sample=True, min_new_tokens=159, max_new_tokens=159, pad_token_id=0)
    return ids[:24], ids[24:]


@cache
def original() -> Any:
    return load()


def quantised(choose: Any) -> tuple[float, float]:
    """Bits per weight, and KL in nats per token on the evaluation half."""
    model = load()
    calibration, evaluation = text()
    reports = quantize_model(model, calibration, Job(choose, served=torch.bfloat16))
    bits = reduce(Bits.__add__, (report.bits for report in reports))
    _, found = divergence(model, original(), [row[None] for row in evaluation], 1)
    return bits.per_weight, found.kl


@cache
def of(method: Method) -> tuple[float, float]:
    return quantised(lambda name: method)


def test_feedback_beats_rounding_and_groups_beat_none() -> None:
    for bits in (3, 4):
        rounded, fed_back, grouped = of(rtn(bits)), of(gptq(bits)), of(gptq(bits, 32))
        assert grouped[1] < fed_back[1] < rounded[1]


def test_spqr_has_half_the_divergence_of_gptq_at_under_five_bits() -> None:
    bits, kl = of(preset("4-bit"))
    assert bits < 5  # statistics weigh more in matrices this small
    assert kl < 0.5 * of(gptq(4))[1]


def test_two_level_statistics_beat_plain_ones_at_fewer_bits() -> None:
    bits, kl = of(preset("3-bit"))
    plain_bits, plain_kl = of(gptq(3, 16))
    assert bits < plain_bits - 1
    assert kl < 1.5 * plain_kl


def test_integers_beat_spqr_at_fewer_bits() -> None:
    bits, kl = of(IntegerSettings(4.2))
    grid_bits, grid_kl = of(preset("4-bit"))
    assert bits < grid_bits - 0.05
    assert kl < grid_kl


def test_divergence_falls_about_fourfold_per_bit() -> None:
    kl = [of(preset("4-bit", bits=b))[1] for b in (3, 4, 5)]
    assert 2.5 < kl[0] / kl[1] < 7
    assert 2.5 < kl[1] / kl[2] < 7


def test_a_bound_holds_and_allocation_beats_one_width() -> None:
    calibration, evaluation = text()
    candidates = [preset("4-bit", bits=b) for b in (2, 3, 4, 5, 6)]
    probe = [row[None] for row in calibration[:6]]
    base = preset("4-bit")
    options = measure_options(
        load(), calibration, probe, candidates, Job(lambda name: base, served=torch.bfloat16)
    )

    def build(plan: Plan) -> Measured:
        return Measured(quantised(lambda name: plan[name].method)[1])

    bound = 0.02
    outcome = reach(options, bound, build, rounds=4)
    assert outcome.best is not None
    assert 0.5 * bound < outcome.best.measured.value <= bound
    weights = sum(choices[-1].bits for choices in options.values()) / 16
    bits, kl = of(base)
    plan = within_bits(options, bits * weights)
    assert size(plan) <= bits * weights
    assert build(plan).value < kl
    assert math.isfinite(kl)
    assert len(evaluation) == 12
