"""The whole job on tiny models: what is written is what was quantised, and loads as the plain model it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crafting import edit_tensor, read_tensors
from tersor.format.checkpoint import open_checkpoint
from tersor.format.validate import check_compressed
from tersor.nn import is_compressed
from tersor.pipeline.decompress import decompress
from tersor.pipeline.inspect import inspect_model, inspect_tensor
from tersor.pipeline.near_lossless.attempts import Step
from tersor.pipeline.near_lossless.goal import Calibration, Goal, one_method
from tersor.pipeline.near_lossless.job import NearLosslessResult, compress_near_lossless
from tersor.pipeline.verify import verify
from tersor.quantize.calibration import calibration_sequences
from tersor.quantize.stream import Job, quantize_model

Build = Callable[[str], Path]
Make = Callable[[str, str], NearLosslessResult]

GOALS: dict[str, Goal] = {
    "spqr": one_method("spqr", 4, tau=0.02),
    "spqr-3": one_method("spqr", 3, group=32, rows=8),
    "gptq": one_method("gptq", 4, group=32),
    "rtn": one_method("rtn", 5),
    "integers": one_method("integers", 3.5),
}
CASES = [(name, "llama") for name in GOALS] + [
    ("spqr", "llama-f16"),
    ("integers", "llama-f16"),
    ("spqr", "qwen3-moe"),
    ("integers", "qwen3-moe"),
]
EVERY = pytest.mark.parametrize(("goal", "model"), CASES)


@pytest.fixture(scope="module")
def make(plain: Build, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """(goal, model) -> the result of the job, made once."""
    root = tmp_path_factory.mktemp("made")
    made: dict[tuple[str, str], NearLosslessResult] = {}

    def run(goal: str, model: str) -> NearLosslessResult:
        if (goal, model) not in made:
            out = root / f"{goal}-{model}"
            made[goal, model] = compress_near_lossless(plain(model), out, GOALS[goal], calibration)
        return made[goal, model]

    return run


def matrices(model: str) -> int:
    """Tensors on disk that are quantised: four of attention, three of every feed-forward or expert."""
    return 2 * (4 + 3 * (4 if model == "qwen3-moe" else 1))


@EVERY
def test_it_is_whole(goal: str, model: str, make: Make, plain: Build) -> None:
    result = make(goal, model)
    found = verify(result.compressed.path, against=plain(model))
    assert found.ok, found.failures
    assert found.quantized == result.quantized_tensors == matrices(model)
    assert result.reached
    assert result.compressed.ratio < 0.75
    left = {path.name for path in result.compressed.path.iterdir()}
    assert left == {path.name for path in plain(model).iterdir()}


@EVERY
def test_the_model_computes_with_the_decompressed_weights(
    goal: str, model: str, make: Make, plain: Build, tmp_path: Path
) -> None:
    """Logits, tokens, dequantize() and a saved copy, bit for bit those of the plain model with these weights."""
    path = make(goal, model).compressed.path
    told = decompress(path, tmp_path / "plain")
    assert told.quantized == matrices(model)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    ids = torch.randint(3, 2048, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = reference(ids).logits
    assert any(is_compressed(module) for module in loaded.modules())
    assert torch.equal(loaded(ids).logits, expected)
    assert not torch.equal(AutoModelForCausalLM.from_pretrained(plain(model))(ids).logits, expected)
    loaded.save_pretrained(tmp_path / "again")
    entries = check_compressed(open_checkpoint(tmp_path / "again")).entries
    assert dict(entries) == dict(check_compressed(open_checkpoint(path)).entries)
    assert verify(tmp_path / "again").ok
    restored = loaded.dequantize()
    assert not any(is_compressed(module) for module in restored.modules())
    assert torch.equal(restored(ids).logits, expected)


@pytest.mark.parametrize("goal", ["spqr", "integers"])
def test_the_weights_are_the_quantisers(
    goal: str, make: Make, plain: Build, calibration: Calibration, tmp_path: Path
) -> None:
    """Quantising the model in memory, with the same text, ends with the tensors that the checkpoint gives."""
    loaded = AutoModelForCausalLM.from_pretrained(plain("llama"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(plain("llama"))
    sequences = calibration_sequences(calibration.text, tokenizer, 8, 32, 0)
    method = GOALS[goal].methods[0]
    quantize_model(loaded, sequences, Job(lambda name: method, served=torch.bfloat16))
    decompress(make(goal, "llama").compressed.path, tmp_path / "plain")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(found[name].float(), tensor), name


def test_bits_are_those_on_disk(make: Make) -> None:
    result = make("spqr", "llama")
    summary = inspect_model(result.compressed.path)
    assert summary.quantized_bits == result.bits
    assert result.bits.outliers > 0
    stored = read_tensors(result.compressed.path / "model.safetensors")
    parts = [t for n, t in stored.items() if n.rpartition("_")[2] in ("codes", "levels", "stats", "order")]
    outliers = [t for n, t in stored.items() if n.rpartition("_")[2] in ("counts", "places", "deltas")]
    assert result.bits.codes + result.bits.statistics == 8 * sum(len(t.data) for t in parts)
    assert result.bits.outliers == 8 * sum(len(t.data) for t in outliers)


def test_one_tensor_is_told_of(make: Make) -> None:
    path = make("spqr", "llama").compressed.path
    name = "model.layers.1.mlp.up_proj.weight"
    report: Any = inspect_tensor(path, name)
    assert sum(report.counts.values()) == 128 * 64
    assert set(report.counts) <= set(range(16))
    assert 3 < report.code_entropy_bits <= 4
    assert report.parameters.outliers == round(report.outliers * 128 * 64)
    report = inspect_tensor(make("integers", "llama").compressed.path, name)
    assert min(report.counts) < 0 < max(report.counts)
    assert report.code_entropy_bits == pytest.approx(3.5, abs=0.1)


def test_the_checkpoint_says_how_it_was_made(make: Make) -> None:
    path = make("spqr", "llama").compressed.path
    told = json.loads((path / "config.json").read_text())["quantization_config"]["near_lossless"]
    assert told["goal"].startswith("spqr 4 bits")
    assert told["bits_per_weight"] == pytest.approx(make("spqr", "llama").bits.per_weight, abs=1e-4)


@pytest.mark.parametrize("goal", ["spqr", "integers"])
def test_a_flipped_bit_anywhere_is_found(goal: str, make: Make, tmp_path: Path) -> None:
    path = make(goal, "llama").compressed.path / "model.safetensors"
    tensors = {name: t for name, t in read_tensors(path).items() if "layers.0" in name and t.data}
    rng = np.random.default_rng(0)
    damaged = tmp_path / "model.safetensors"
    for name, tensor in tensors.items():
        bit = int(rng.integers(8 * len(tensor.data)))
        damaged.write_bytes(path.read_bytes())

        def flip(data: bytearray, bit: int = bit) -> None:
            data[bit // 8] ^= 1 << bit % 8

        edit_tensor(damaged, name, flip)
        found = verify(damaged)
        assert len(found.failures) == 1, name
        assert name.startswith(found.failures[0].tensor)


def test_every_matrix_is_told_of_as_it_is_done(
    plain: Build, calibration: Calibration, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    steps: list[Step] = []
    result = compress_near_lossless(
        plain("llama"),
        tmp_path / "out",
        GOALS["spqr"],
        calibration,
        held_out=texts[1],
        on_step=steps.append,
    )
    layers = [step.layer for step in steps if step.layer]
    assert len(layers) == 14
    assert all(layer.error is not None and 0 < layer.error < 0.1 for layer in layers)
    assert [step.done for step in steps if step.layer] == list(range(1, 15))
    assert [(layer.name, layer.error) for layer in result.layers] == [(x.name, x.error) for x in layers]
    assert result.held_out is not None
    assert -1e-6 < result.held_out.kl < 0.1  # random weights: all tokens alike, up to rounding
    assert result.held_out.perplexity_loss == pytest.approx(
        result.held_out.perplexity / result.held_out.original_perplexity - 1
    )
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert told["near_lossless"]["held_out"]["kl"] == result.held_out.kl
