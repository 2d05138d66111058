"""On a GPU: the same numbers as on the CPU, and whole models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.codec.quantized import dequantize_torch
from tersor.quantize import integers_torch, spqr
from tersor.quantize.integers import IntegerSettings
from tersor.quantize.settings import Settings, gptq, preset
from tersor.quantize.stream import Job, quantize_model

pytestmark = pytest.mark.gpu


def layer(rows: int = 256, columns: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64) @ mix
    weight = 0.02 * torch.randn(rows, columns, generator=generator) ** 3
    return weight.bfloat16(), x.T @ x / len(x)


@pytest.mark.parametrize("settings", [preset("3-bit"), preset("4-bit", act_order="columns"), gptq(4, 128)])
def test_grids_equal_those_of_the_cpu(settings: Settings) -> None:
    weight, h = layer()
    here = spqr.quantize(weight, h, settings, torch.float64)
    there = spqr.quantize(weight.cuda(), h.cuda(), settings, torch.float64)
    for field in ("codes", "scale_codes", "zero_codes", "stats", "outlier_index", "outlier_value"):
        np.testing.assert_array_equal(getattr(here, field), getattr(there, field), field)
    served = dequantize_torch.dequantize(there, "cuda")
    assert torch.equal(served.cpu(), dequantize_torch.dequantize(here))


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
