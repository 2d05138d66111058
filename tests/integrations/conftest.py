"""Tiny random models of many architectures, plain and compressed, made once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tersor.integrations.transformers  # noqa: F401  (registers, also where tersor is on the path only)
from tersor.pipeline.compress import compress

TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
HEADS = {"head_dim": 16}
WINDOW = {"sliding_window": 8}

# name -> configuration class, and what it needs beside TINY
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-joint": (
        "Qwen2Config",
        {"num_key_value_heads": 4},
    ),  # keys and values large enough to be compressed
    "qwen3": ("Qwen3Config", HEADS),
    "mistral": ("MistralConfig", HEADS | WINDOW),
    "gemma2": ("Gemma2Config", HEADS | WINDOW),
    "gemma3": ("Gemma3TextConfig", HEADS | WINDOW),
    "falcon": ("FalconConfig", {"new_decoder_architecture": False, "bias": True}),
    "gpt2": ("GPT2Config", {}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "gpt-oss": ("GptOssConfig", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),  # 3-D on disk
    "granite-moe": (
        "GraniteMoeConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),  # and renamed whole
    "hrm-text": ("HrmTextConfig", {}),  # projections fused on disk, apart in the model
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}),
}
Build = Callable[[str], Path]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """name -> directory of a bf16 checkpoint with random weights."""
    root = tmp_path_factory.mktemp("plain")

    def build(name: str) -> Path:
        directory = root / name
        if not directory.exists():
            kind, extra = ARCHITECTURES[name]
            torch.manual_seed(0)
            config = getattr(transformers, kind)(**(TINY | extra))
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            for parameter in model.parameters():  # biases and norms too, or a lost one would not be seen
                torch.nn.init.normal_(parameter, std=0.05)
            model.save_pretrained(directory)
        return directory

    return build


@pytest.fixture(scope="session")
def compressed(plain: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """name -> directory of that checkpoint, compressed."""
    root = tmp_path_factory.mktemp("compressed")

    def build(name: str) -> Path:
        directory = root / name
        if not directory.exists():
            compress(plain(name), directory)
        return directory

    return build


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress bars in the test log."""
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def ids() -> torch.Tensor:
    """A batch of prompts."""
    return torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(1))
