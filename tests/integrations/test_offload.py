"""Device maps and offloading: layers that live on disk give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tersor.format.checkpoint import open_checkpoint
from tersor.format.errors import UsageError
from tersor.format.validate import check_compressed
from tersor.integrations.transformers import TersorConfig

Build = Callable[[str], Path]

NAMES = pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "qwen3-moe"])

# accelerate and save_pretrained warn that offloading is slow and that saving needs memory
pytestmark = [
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
    pytest.mark.filterwarnings("ignore:.*were offloaded to the.*"),
]


def expected(plain: Path, ids: torch.Tensor) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(plain)(ids).logits


def split(name: str) -> dict[str, str]:
    """The first layer in memory, the second on disk, and with it what is not tied."""
    if name == "gpt2":
        parts = "transformer.", ("wte", "wpe", "drop", "h.0"), ("h.1", "ln_f")
    else:
        parts = "model.", ("embed_tokens", "rotary_emb", "layers.0"), ("layers.1", "norm")
    prefix, in_memory, on_disk = parts
    head = {"lm_head": "cpu" if name in ("llama-tied", "gpt2") else "disk"}
    return {prefix + n: "cpu" for n in in_memory} | {prefix + n: "disk" for n in on_disk} | head


def on_disk(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


@NAMES
def test_disk(name: str, plain: Build, compressed: Build, ids: torch.Tensor, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        compressed(name), device_map=split(name), offload_folder=tmp_path / "offload"
    )
    assert any(part.endswith("weight_tiles") for part in on_disk(model))
    before = on_disk(model)
    assert torch.equal(model(ids).logits, expected(plain(name), ids))
    assert on_disk(model) == before
    model.save_pretrained(tmp_path / "saved")
    saved, original = (check_compressed(open_checkpoint(p)) for p in (tmp_path / "saved", compressed(name)))
    assert saved.entries == original.entries


@NAMES
def test_auto_puts_the_rest_on_disk(
    name: str, plain: Build, compressed: Build, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        compressed(name), device_map="auto", max_memory={"cpu": 90_000}, offload_folder=tmp_path
    )
    assert on_disk(model)
    assert torch.equal(model(ids).logits, expected(plain(name), ids))


@NAMES
def test_auto_fits_in_memory(name: str, plain: Build, compressed: Build, ids: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(compressed(name), device_map="auto")
    assert not on_disk(model)
    assert torch.equal(model(ids).logits, expected(plain(name), ids))


@NAMES
def test_compressing_while_offloading(name: str, plain: Build, ids: torch.Tensor, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        plain(name), device_map=split(name), offload_folder=tmp_path, quantization_config=TersorConfig()
    )
    assert any(part.endswith("weight_tiles") for part in on_disk(model))
    assert torch.equal(model(ids).logits, expected(plain(name), ids))


def test_an_offloaded_model_is_not_dequantized_in_part(compressed: Build, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        compressed("llama"), device_map=split("llama"), offload_folder=tmp_path
    )
    with pytest.raises(UsageError, match="offloaded"):
        model.dequantize()
