"""A model with quantised weights, held for fused products: the same logits, the same checkpoint saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from matrices import grid_matrix
from tersor.codec.quantized.parts import entry_of, to_parts
from tersor.format.checkpoint import open_checkpoint
from tersor.nn import CompressedLinear, compress, lay_out, restore
from tersor.nn.form_spqr import SpqrForm
from tersor.nn.fused import Fused
from tersor.nn.joint import Joint
from tersor.pipeline.verify import verify

Build = Callable[[str], Path]


@pytest.fixture
def quantized(compressed: Build, tmp_path: Path) -> Path:
    """A checkpoint whose linear layers, the head too, are random codes on grids, in several units."""
    model = AutoModelForCausalLM.from_pretrained(compressed("qwen2-joint"))
    for i, module in enumerate(list(model.modules())):
        if isinstance(module, CompressedLinear):
            rows, columns = module.weight.shape
            q = grid_matrix(rows, columns, outliers=50, ordered=False, unit=2.0 ** (-7 - i % 3), seed=i)
            parts, plain = to_parts(q), module
            restore(plain)
            arrays = {"weight" + n: torch.from_numpy(np.ascontiguousarray(p)) for n, p in parts.items()}
            compress(plain, "weight", entry_of(q, parts), arrays)
    model.save_pretrained(tmp_path / "quantized")
    assert verify(tmp_path / "quantized").ok
    return tmp_path / "quantized"


def stored(path: Path) -> dict[str, Any]:
    return {name: shard.read(name) for shard, name in open_checkpoint(path).tensors()}


def test_there_and_back(quantized: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    plain, model = (AutoModelForCausalLM.from_pretrained(quantized) for _ in range(2))
    linear = [module for module in model.modules() if isinstance(module, CompressedLinear)]
    assert lay_out(model, "fast", device_type="cpu") == len(linear)
    sources = [module.compressed["weight"] for module in linear]
    assert all(isinstance(s, Fused) and isinstance(s.form, SpqrForm) for s in sources)
    assert sum(isinstance(m, Joint) for m in model.modules()) == 2 * model.config.num_hidden_layers
    expected = plain(ids).logits
    assert torch.equal(model(ids).logits, expected)
    model.save_pretrained(tmp_path / "again")
    first, again = stored(quantized), stored(tmp_path / "again")
    assert first.keys() == again.keys() and all((first[n] == again[n]).all() for n in first)
    assert verify(tmp_path / "again").ok
    model.dequantize()
    assert torch.equal(model(ids).logits, expected)
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.gpu
def test_loaded_to_a_gpu(quantized: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    """`device_map="cuda"` leads there by itself, and saving back."""
    plain = AutoModelForCausalLM.from_pretrained(quantized)
    model = AutoModelForCausalLM.from_pretrained(quantized, device_map="cuda")
    linear = [module for module in model.modules() if isinstance(module, CompressedLinear)]
    for module, reference in zip(
        linear, (m for m in plain.modules() if isinstance(m, CompressedLinear)), strict=True
    ):
        assert isinstance(module.compressed["weight"], Fused)
        assert torch.equal(module.weight.cpu(), reference.weight.clone())
    with torch.inference_mode():
        torch.testing.assert_close(model(ids.cuda()).logits.cpu(), plain(ids).logits, rtol=5e-2, atol=5e-2)
    model.save_pretrained(tmp_path / "again")
    first, again = stored(quantized), stored(tmp_path / "again")
    assert first.keys() == again.keys() and all((first[n] == again[n]).all() for n in first)
