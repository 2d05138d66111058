"""The decode loop says what `generate` says, for plain and compressed weights, again and again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.pipeline.compress import compress
from tersor.pipeline.decode_loop import DecodeLoop
from tersor.pipeline.generate import Generator


def test_the_tokens_of_generate(demo_model: Path, tmp_path: Path) -> None:
    """Greedy, with a static cache that is used twice."""
    pytest.importorskip("transformers")
    for model in (demo_model, compress(demo_model, tmp_path / "made").path):
        generator = Generator(model, "cpu")
        ids = generator.prompt_ids("The river rises")
        loop = DecodeLoop(generator.model, ids.shape[1] + 12)
        decoded = [loop.run(ids, 12) for _ in range(2)]
        with torch.inference_mode():
            whole = generator.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None,
                pad_token_id=2,
            )  # fmt: skip
        assert decoded[0].tokens == decoded[1].tokens == tuple(whole[0, ids.shape[1] :].tolist())
        assert decoded[0].tokens_per_second > 0


def test_a_cache_too_short(demo_model: Path) -> None:
    """Refused before anything runs."""
    pytest.importorskip("transformers")
    generator = Generator(demo_model, "cpu")
    with pytest.raises(ValueError, match="do not fit a cache of 8"):
        DecodeLoop(generator.model, 8).run(generator.prompt_ids("The river rises"), 8)
