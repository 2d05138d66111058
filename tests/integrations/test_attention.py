"""Transformers' attention interface over the operator for decode steps (here on the CPU's implementation)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from tersor.integrations.transformers.attention import DECODE_ATTENTION, attention  # noqa: E402


def llama() -> Any:
    """Two layers of random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def steps(model: Any, ids: torch.Tensor, implementation: str) -> torch.Tensor:
    """Logits of three single tokens after a prompt, these attended to as `implementation` says."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=24)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache)
        model.set_attn_implementation(implementation)
        logits = [model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(3)]
    return torch.cat(logits)


def test_steps_of_a_model() -> None:
    """The same logits as torch's attention under a mask."""
    model, ids = llama(), torch.randint(3, 90, (1, 7))
    torch.testing.assert_close(steps(model, ids, DECODE_ATTENTION), steps(model, ids, "sdpa"))


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 4},
        {"softcap": 30.0},
        {"indices": torch.zeros(1)},
        {"attention_mask": torch.zeros(1, 1, 1, 8)},
        {"position_ids": None},
        {"query": torch.randn(1, 4, 2, 16)},
        {"query": torch.randn(2, 4, 1, 16)},
        {"value": torch.randn(1, 2, 8, 24)},
    ],
)
def test_refused(change: dict[str, Any]) -> None:
    """Whatever it might not compute is an error, on which the decode loop goes back to torch's attention."""
    given: dict[str, Any] = {
        "query": torch.randn(1, 4, 1, 16), "key": torch.randn(1, 2, 8, 16), "value": torch.randn(1, 2, 8, 16),
        "attention_mask": None, "position_ids": torch.tensor([[5]]), "dropout": 0.0, "use_cache": True,
    }  # fmt: skip
    assert attention(torch.nn.Identity(), **given)[0].shape == (1, 1, 4, 16)
    with pytest.raises(NotImplementedError, match="serves single tokens"):
        attention(torch.nn.Identity(), **{**given, **change})
