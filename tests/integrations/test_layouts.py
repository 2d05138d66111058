"""A model in the `fast` layout saves the checkpoint that it was loaded from (on the CPU's operators)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import tersor
from tersor.format.checkpoint import open_checkpoint
from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.format.validate import check_compressed
from tersor.integrations.transformers import TersorConfig, encoding, saving
from tersor.nn import compress, lay_out
from tersor.nn.joint import Joint
from tersor.nn.scope import Scope

Build = Callable[[str], Path]


def joints(model: Any) -> list[Joint]:
    return [module for module in model.modules() if isinstance(module, Joint)]


def test_saved_from_the_fast_layout(tmp_path: Path) -> None:
    """Logits, the manifest and every stored byte are what they were."""
    plain = Path(str(files("tersor") / "demo_model"))
    made = tersor.compress(plain, tmp_path / "made").path
    model = AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    ids = torch.tensor([[5, 9, 300, 77]])
    before = model(input_ids=ids).logits
    layers = model.config.num_hidden_layers
    assert lay_out(model, "fast", device_type="cpu") == 7 * layers + 1
    assert torch.equal(model(input_ids=ids).logits, before)
    model.save_pretrained(tmp_path / "again")
    assert tersor.verify(tmp_path / "again", against=plain).ok
    first, second = ({n: s for s, n in open_checkpoint(p).tensors()} for p in (made, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all((first[n].read(n) == second[n].read(n)).all() for n in first)
    assert torch.equal(model(input_ids=ids).logits, before)  # saving left the model as it was
    model.tie_weights()
    assert model.lm_head.weight_blocks is model.model.embed_tokens.weight_blocks
    model.dequantize()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("exact", [False, True])
def test_projections_are_joined(
    plain: Build, compressed: Build, ids: torch.Tensor, exact: bool, tmp_path: Path
) -> None:
    """Query, key and value, gate and up: one matrix each, the same logits and tokens, by every way out."""
    reference, model = (AutoModelForCausalLM.from_pretrained(d("qwen2-joint")) for d in (plain, compressed))
    lay_out(model, "fast", exact, device_type="cpu")
    assert [len(joint.members) for joint in joints(model)] == [3, 2] * model.config.num_hidden_layers
    assert torch.equal(model(ids).logits, reference(ids).logits)
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
    }
    assert torch.equal(model.generate(ids, **options), reference.generate(ids, **options))
    assert all(joint.together and joint.ready is None for joint in joints(model))
    model.save_pretrained(tmp_path)
    assert tersor.verify(tmp_path, against=plain("qwen2-joint")).ok
    model.dequantize()
    assert not joints(model) and not any(isinstance(module, Scope) for module in model.modules())
    assert torch.equal(model(ids).logits, reference(ids).logits)
    assert model.state_dict().keys() == reference.state_dict().keys()


@pytest.mark.parametrize("name", ["llama-tied", "mixtral"])
@pytest.mark.parametrize("layout", ["compact", "fast"])
def test_hashed_when_it_is_saved(
    name: str, layout: Any, plain: Build, compressed: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is encoded where it is loaded to (a GPU; here the CPU stands for one) has its hash on disk all the same."""
    assert saving.sha256 is encoding.sha256  # which is imported already when the other is replaced
    monkeypatch.setattr(encoding, "encodes", lambda device: True)
    monkeypatch.setattr(encoding, "sha256", lambda weight: pytest.fail("hashed while loading"))
    model = AutoModelForCausalLM.from_pretrained(plain(name), quantization_config=TersorConfig())
    lay_out(model, layout, device_type="cpu")
    model.save_pretrained(tmp_path)
    first, again = (check_compressed(open_checkpoint(path)).entries for path in (compressed(name), tmp_path))
    assert dict(first) == dict(again) and tersor.verify(tmp_path, against=plain(name)).ok


def test_a_joined_model_compiles_whole(compressed: Build, ids: torch.Tensor) -> None:
    """One graph, in which each group is one product."""
    model = AutoModelForCausalLM.from_pretrained(compressed("qwen2-joint"))
    lay_out(model, "fast", device_type="cpu")
    expected = model(ids).logits
    products: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        products.append(sum("window_linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model.forward, fullgraph=True, backend=backend)
        assert all(torch.equal(compiled(ids).logits, expected) for _ in range(2))
    assert products == [4 * model.config.num_hidden_layers + 1]  # q k v, o, gate up, down; the head


def test_keys_from_elsewhere_are_noticed(ids: torch.Tensor) -> None:
    """Cross-attention multiplies apart after the first guess, self-attention goes on together."""
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=256, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=64,
    )  # fmt: skip
    plain = transformers.BartForConditionalGeneration(config).bfloat16().eval()
    model = transformers.BartForConditionalGeneration(config).bfloat16().eval()
    model.load_state_dict(plain.state_dict())
    for module in list(model.model.modules()):
        if isinstance(module, torch.nn.Linear):
            tiles, offsets, book = torch.ops.tersor.huffman_encode(module.weight)
            parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
            entry = TensorEntry(CODEC_HUFFMAN, "BF16", tuple(module.weight.shape), "0" * 64)
            compress(module, "weight", entry, parts)
    lay_out(model, "fast", device_type="cpu")
    options = {"max_new_tokens": 8, "do_sample": False}
    for _ in range(2):
        assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    for name, module in model.named_modules():
        if isinstance(module, Joint):
            assert module.together == ("encoder_attn" not in name) and module.ready is None
