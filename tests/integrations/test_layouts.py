"""A model in the `fast` layout saves the checkpoint that it was loaded from (on the CPU's operators)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import tersor
from tersor.format.checkpoint import open_checkpoint
from tersor.nn import lay_out


def test_saved_from_the_fast_layout(tmp_path: Path) -> None:
    """Logits, the manifest and every stored byte are what they were."""
    plain = Path(str(files("tersor") / "demo_model"))
    made = tersor.compress(plain, tmp_path / "made").path
    model = AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    ids = torch.tensor([[5, 9, 300, 77]])
    before = model(input_ids=ids).logits
    layers = model.config.num_hidden_layers
    assert lay_out(model, "fast", device_type="cpu") == 7 * layers  # the head is the embedding's
    assert torch.equal(model(input_ids=ids).logits, before)
    model.save_pretrained(tmp_path / "again")
    assert tersor.verify(tmp_path / "again", against=plain).ok
    first, second = ({n: s for s, n in open_checkpoint(p).tensors()} for p in (made, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all((first[n].read(n) == second[n].read(n)).all() for n in first)
    assert torch.equal(model(input_ids=ids).logits, before)  # saving left the model as it was
