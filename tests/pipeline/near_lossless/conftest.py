"""A tiny random language model with the demo model's tokenizer, and text for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tersor.pipeline.near_lossless.goal import Calibration

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SMALL = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "one block": lambda: transformers.LlamaConfig(**SMALL | {"num_hidden_layers": 1}, intermediate_size=128),
    "llama": lambda: transformers.LlamaConfig(**SMALL, intermediate_size=128),
    "llama-f16": lambda: transformers.LlamaConfig(**SMALL, intermediate_size=128),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, intermediate_size=128, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2
    ),
}
SENTENCES = (
    "The river rises in the mountains and flows to the sea .",
    "In the year of the great flood the town was built again on the hill .",
    "He was born in the north and became a teacher of music .",
)

Build = Callable[[str], Path]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars in the test log, and one thread: for matrices this small several only wait."""
    transformers.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plain(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """name -> directory of a checkpoint with random weights and a tokenizer."""
    root = tmp_path_factory.mktemp("plain")

    def build(name: str) -> Path:
        directory = root / name
        if not directory.exists():
            torch.manual_seed(0)
            dtype = torch.float16 if name.endswith("f16") else torch.bfloat16
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=dtype)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.05)
            model.save_pretrained(directory)
            for file in demo_model.glob("tokenizer*"):
                shutil.copyfile(file, directory / file.name)
        return directory

    return build


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Calibration text, and other text."""
    folder = tmp_path_factory.mktemp("texts")
    calib, held_out = folder / "calib.txt", folder / "heldout.txt"
    calib.write_text("\n".join(SENTENCES[i % 3] for i in range(60)))
    held_out.write_text("\n".join(SENTENCES[i % 3][::-1] for i in range(12)))
    return calib, held_out


@pytest.fixture(scope="session")
def calibration(texts: tuple[Path, Path]) -> Calibration:
    """Eight short sequences of that text."""
    return Calibration(texts[0], sequences=8, length=32)
