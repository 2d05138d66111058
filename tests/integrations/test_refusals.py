"""What does not fit is an error that names the tensor, never a warning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tersor.format.errors import (
    BadManifest,
    FormatError,
    MissingTensor,
    UnknownVersion,
    UsageError,
    WrongShape,
)
from tersor.integrations.transformers import TersorConfig

Build = Callable[[str], Path]


def edited(source: Path, target: Path, **config: object) -> Path:
    """A copy with other values in config.json."""
    shutil.copytree(source, target)
    document = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(document | config))
    return target


def test_a_tensor_without_a_home(compressed: Build, tmp_path: Path) -> None:
    directory = edited(compressed("llama"), tmp_path / "x", num_hidden_layers=1)
    with pytest.raises(MissingTensor, match=r"model\.layers\.1\..*config\.json"):
        AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
def test_another_shape_than_the_model_expects(name: str, compressed: Build, tmp_path: Path) -> None:
    directory = edited(compressed(name), tmp_path / "x", vocab_size=512)
    with pytest.raises(WrongShape, match=r"\[256, 64\].*\[512, 64\]"):
        AutoModelForCausalLM.from_pretrained(directory)


def test_another_number_of_experts(compressed: Build, tmp_path: Path) -> None:
    directory = edited(compressed("qwen3-moe"), tmp_path / "x", num_local_experts=5)
    with pytest.raises(MissingTensor, match=r"4\.(down|gate|up)_proj\.weight"):
        AutoModelForCausalLM.from_pretrained(directory)


def test_another_size_of_experts(compressed: Build, tmp_path: Path) -> None:
    directory = edited(compressed("qwen3-moe"), tmp_path / "x", moe_intermediate_size=48)
    with pytest.raises(WrongShape, match=r"expert 0 .*\[64, 64\].*\[64, 48\]"):
        AutoModelForCausalLM.from_pretrained(directory)


def test_a_newer_format(compressed: Build, tmp_path: Path) -> None:
    newer = {"quant_method": "tersor", "format_version": 2}
    with pytest.raises(UnknownVersion, match="newer tersor"):
        AutoModelForCausalLM.from_pretrained(
            edited(compressed("llama"), tmp_path / "x", quantization_config=newer)
        )


def rewrite(directory: Path, target: Path, metadata: bool = True, drop: str = "") -> Path:
    """A copy of a compressed checkpoint with a part or the metadata missing."""
    shutil.copytree(directory, target)
    file = target / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != drop}
    with safe_open(file, "pt") as opened:
        kept = opened.metadata() if metadata else {"format": "pt"}
    save_file(tensors, file, kept)
    return target


def test_a_missing_part(compressed: Build, tmp_path: Path) -> None:
    part = "model.layers.0.self_attn.q_proj.weight_offsets"
    with pytest.raises(MissingTensor, match=part):
        AutoModelForCausalLM.from_pretrained(rewrite(compressed("llama"), tmp_path / "x", drop=part))


def test_a_lost_manifest(compressed: Build, tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(rewrite(compressed("llama"), tmp_path / "x", metadata=False))


def test_damaged_data_is_found_when_it_is_used(compressed: Build, ids: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(compressed("llama"))
    model.lm_head.weight_book.data.zero_()
    with pytest.raises(FormatError):
        model(ids)


def test_weights_in_pickles(plain: Build, tmp_path: Path) -> None:
    shutil.copytree(plain("llama"), tmp_path / "x")
    torch.save(load_file(tmp_path / "x" / "model.safetensors"), tmp_path / "x" / "pytorch_model.bin")
    (tmp_path / "x" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="save_pretrained"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "x", quantization_config=TersorConfig(), use_safetensors=False
        )


def test_writing_to_a_compressed_weight(compressed: Build) -> None:
    model = AutoModelForCausalLM.from_pretrained(compressed("llama"))
    with pytest.raises(TypeError, match="dequantize"):
        model.lm_head.weight = torch.zeros(256, 64)
