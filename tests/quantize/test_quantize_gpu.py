"""On a GPU: the same numbers as on the CPU, and whole models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tersor.codec.quantized import dequantize_torch
from tersor.codec.quantized.matrix import Quantized
from tersor.quantize import integers_torch, spqr
from tersor.quantize.columns import new_block
from tersor.quantize.integers import IntegerSettings
from tersor.quantize.observe import Hessian
from tersor.quantize.settings import Settings, gptq, preset, rtn
from tersor.quantize.stream import Job, quantize_model

pytestmark = pytest.mark.gpu


def layer(rows: int = 256, columns: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64) @ mix
    weight = 0.02 * torch.randn(rows, columns, generator=generator) ** 3
    return weight.bfloat16(), x.T @ x / len(x)


SETTINGS = {
    "3-bit": preset("3-bit"),
    "4-bit": preset("4-bit"),
    "columns": preset("4-bit", act_order="columns"),
    "no outliers": preset("4-bit", tau=math.inf),
    "groups of 24": preset("4-bit", group=24, rows=64, stat_bits=4),  # blocks of 120, the last of 32
    "groups of 128": gptq(4, 128),
    "groups of 256": gptq(4, 256),
    "whole rows": gptq(4),
    "rounding": rtn(4, 32),
}
EVERY = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
STORED = ("codes", "scale_codes", "zero_codes", "stats", "outlier_index", "outlier_value")


def assert_equal(a: Quantized, b: Quantized) -> None:
    for field in STORED:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), field)


@EVERY
def test_grids_equal_those_of_the_cpu(settings: Settings) -> None:
    weight, h = layer()
    for scale in (1.0, 2.0**-7):  # the second matrix replays the first one's graph, in another unit
        here = spqr.quantize(weight * scale, h, settings, torch.float64)
        there = spqr.quantize((weight * scale).cuda(), h.cuda(), settings, torch.float64)
        assert here.unit == there.unit
        assert_equal(here, there)
        served = dequantize_torch.dequantize(there, "cuda")
        assert torch.equal(served.cpu(), dequantize_torch.dequantize(here))


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_replayed_graph_does_what_the_plain_loop_does(
    settings: Settings, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, h = (x.cuda() for x in layer(300, 640))
    replayed = spqr.quantize(weight.to(dtype), h, settings)

    def plain(
        n: int, rows: int, group: int, like: torch.Tensor, settings: Settings, served: object
    ) -> object:
        return new_block(n, rows, -(-n // group), like, settings), None

    monkeypatch.setattr(spqr, "captured", plain)
    assert_equal(replayed, spqr.quantize(weight.to(dtype), h, settings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_hessians_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(3, 1000, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = Hessian()
    for sequence in x:
        found.add(sequence[None].cuda())
    flat = x.double().reshape(-1, 96)
    mean = found.mean()
    assert mean is not None
    torch.testing.assert_close(mean.cpu().double(), flat.T @ flat * (2 / 3000), rtol=1e-5, atol=1e-5)


def test_integers_equal_those_of_the_cpu() -> None:
    weight, h = layer()
    here = integers_torch.quantize(weight, h, IntegerSettings(4.0), torch.float64)
    there = integers_torch.quantize(weight.cuda(), h.cuda(), IntegerSettings(4.0), torch.float64)
    np.testing.assert_array_equal(here.codes, there.codes)
    assert torch.equal(dequantize_torch.dequantize(there, "cuda").cpu(), dequantize_torch.dequantize(here))


def test_blocks_visit_the_gpu_one_by_one() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).bfloat16()
    ids = torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(0))
    job = Job(lambda name: preset("4-bit"), device="cuda")
    reports = quantize_model(model, ids, job)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert len(reports) == 21
    assert all(report.error is not None and report.error < 0.01 for report in reports)
