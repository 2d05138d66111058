"""Every architecture: the plain model's bits, by every way in and out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tersor.format.checkpoint import open_checkpoint
from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.format.validate import check_compressed
from tersor.integrations.transformers import TersorConfig
from tersor.nn import CompressedModule, is_compressed
from tersor.pipeline.compress import compress
from tersor.pipeline.verify import verify

Build = Callable[[str], Path]

NAMES = [
    "llama", "llama-tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "falcon", "gpt2",
    "qwen3-moe", "mixtral", "gpt-oss", "granite-moe",
]  # fmt: skip
MODELS = pytest.mark.parametrize("name", NAMES)
FEW = pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "mixtral"])


def load(directory: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def generated(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
    )


def manifest(directory: Path) -> dict[str, TensorEntry]:
    return dict(check_compressed(open_checkpoint(directory)).entries)


def plain_matrices(model: Any) -> list[str]:
    """Parameters large enough to be compressed that are not."""
    return [
        n for n, p in model.named_parameters() if p.is_floating_point() and p.dim() >= 2 and p.numel() >= 4096
    ]


@MODELS
def test_logits_and_tokens(name: str, plain: Build, compressed: Build, ids: torch.Tensor) -> None:
    reference, model = load(plain(name)), load(compressed(name))
    assert plain_matrices(model) == []
    assert torch.equal(model(ids).logits, reference(ids).logits)
    assert torch.equal(generated(model, ids), generated(reference, ids))


@MODELS
def test_compressing_while_loading(
    name: str, plain: Build, compressed: Build, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = load(plain(name), quantization_config=TersorConfig())
    assert plain_matrices(model) == []
    assert torch.equal(model(ids).logits, load(plain(name))(ids).logits)
    model.save_pretrained(tmp_path)
    assert manifest(tmp_path) == manifest(compressed(name))
    assert verify(tmp_path, against=plain(name)).ok


@MODELS
def test_saving_again(name: str, plain: Build, compressed: Build, ids: torch.Tensor, tmp_path: Path) -> None:
    load(compressed(name)).save_pretrained(tmp_path / "one")
    load(tmp_path / "one").save_pretrained(tmp_path / "two", max_shard_size="20KB")
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 2
    for directory in (tmp_path / "one", tmp_path / "two"):
        assert manifest(directory) == manifest(compressed(name))
        assert torch.equal(load(directory)(ids).logits, load(plain(name))(ids).logits)
    first, again = (load_file(path / "model.safetensors") for path in (compressed(name), tmp_path / "one"))
    assert first.keys() == again.keys()
    assert all(
        torch.equal(first[n].view(torch.uint8), again[n].view(torch.uint8)) for n in first if first[n].dim()
    )


@MODELS
@pytest.mark.parametrize("compressed_on_disk", [True, False])
def test_dequantize(
    name: str, compressed_on_disk: bool, plain: Build, compressed: Build, ids: torch.Tensor, tmp_path: Path
) -> None:
    options = {} if compressed_on_disk else {"quantization_config": TersorConfig()}
    model = load(compressed(name) if compressed_on_disk else plain(name), **options).dequantize()
    assert not any(is_compressed(module) for module in model.modules())
    assert torch.equal(model(ids).logits, load(plain(name))(ids).logits)
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == (plain(name) / "config.json").read_text()
    expected, saved = (load_file(path / "model.safetensors") for path in (plain(name), tmp_path))
    assert expected.keys() == saved.keys()
    assert all(torch.equal(expected[n], saved[n]) for n in expected)


@MODELS
def test_deepcopy(name: str, plain: Build, compressed: Build, ids: torch.Tensor) -> None:
    model = load(compressed(name))
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(twin(ids).logits, load(plain(name))(ids).logits)


@FEW
def test_nothing_is_decoded_while_loading(
    name: str, compressed: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("decoded while loading")

    for method in ("decode", "rows", "select"):
        monkeypatch.setattr(f"tersor.nn.stored.Stored.{method}", fail)
    load(compressed(name))


@FEW
def test_loading_says_nothing(
    name: str, compressed: Build, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """In particular it does not report each guard as an unexpected tensor."""
    load(compressed(name))
    assert caplog.text == ""
    assert "UNEXPECTED" not in capfd.readouterr().err


def test_loading_info_is_clean(compressed: Build) -> None:
    _, info = load(compressed("qwen3-moe"), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("name", ["llama-tied", "gemma3", "gpt2"])
def test_tied_weights_are_stored_once(name: str, compressed: Build, plain: Build, ids: torch.Tensor) -> None:
    model = load(compressed(name))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, CompressedModule)
    assert head.weight_tiles is embedding.weight_tiles
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    model.tie_weights()  # as users and other libraries do
    assert head.weight_tiles is embedding.weight_tiles
    twin = copy.deepcopy(model)
    assert twin.get_output_embeddings().weight_tiles is twin.get_input_embeddings().weight_tiles
    assert torch.equal(twin(ids).logits, load(plain(name))(ids).logits)


def test_an_untied_head_is_its_own(compressed: Build) -> None:
    model = load(compressed("llama"))
    assert model.lm_head.weight_tiles is not model.model.embed_tokens.weight_tiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@FEW
def test_another_dtype(
    name: str, dtype: torch.dtype, plain: Build, compressed: Build, ids: torch.Tensor
) -> None:
    """Stored as it was, computed with as the plain model would."""
    expected = load(plain(name), dtype=dtype)(ids).logits
    assert torch.equal(load(compressed(name), dtype=dtype)(ids).logits, expected)
    assert torch.equal(load(compressed(name)).to(dtype)(ids).logits, expected)


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts(name: str, implementation: str, plain: Build, compressed: Build, ids: torch.Tensor) -> None:
    options = {"experts_implementation": implementation}
    reference, model = load(plain(name), **options), load(compressed(name), **options)
    assert torch.equal(model(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_only_the_experts_hit_are_decoded(implementation: str, compressed: Build) -> None:
    model = load(compressed("qwen3-moe"), experts_implementation=implementation)
    decoded: list[str] = []
    for name, module in model.named_modules():
        if name.endswith("gate_proj"):
            module.register_forward_hook(lambda *_, name=name: decoded.append(name))
    model(torch.tensor([[7]]))
    assert len(decoded) == 2 * 2  # layers x experts per token


def test_three_sides_of_one_tie(plain: Build, ids: torch.Tensor, tmp_path: Path) -> None:
    """An encoder-decoder: both embeddings and the head are one tensor, and some weights stay in fp32."""
    config = transformers.T5Config(
        vocab_size=256, d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).bfloat16().save_pretrained(tmp_path / "plain")
    compress(tmp_path / "plain", tmp_path / "compressed")
    cls = transformers.AutoModelForSeq2SeqLM
    for dtype in (torch.bfloat16, torch.float16):  # in fp16 T5 keeps `wo` in fp32
        expected = cls.from_pretrained(tmp_path / "plain", dtype=dtype)(ids, decoder_input_ids=ids).logits
        encoded = cls.from_pretrained(tmp_path / "plain", dtype=dtype, quantization_config=TersorConfig())
        assert torch.equal(encoded(ids, decoder_input_ids=ids).logits, expected)
        model = cls.from_pretrained(tmp_path / "compressed", dtype=dtype)
        assert torch.equal(model(ids, decoder_input_ids=ids).logits, expected)
    tiles = {
        id(m.weight_tiles) for m in (model.shared, model.encoder.embed_tokens, model.decoder.embed_tokens)
    }
    assert len(tiles) == 1


def test_a_convolution(tmp_path: Path) -> None:
    """Whisper: convolutions, and positions that are an embedding of their own kind."""
    config = transformers.WhisperConfig(
        vocab_size=256, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=64,
        max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.WhisperForConditionalGeneration(config).bfloat16().save_pretrained(tmp_path / "plain")
    compress(tmp_path / "plain", tmp_path / "compressed")
    cls = transformers.AutoModelForSpeechSeq2Seq
    inputs = {
        "input_features": torch.randn(1, 80, 128, generator=torch.Generator().manual_seed(1)).bfloat16(),
        "decoder_input_ids": torch.tensor([[1, 7, 9]]),
    }
    model = cls.from_pretrained(tmp_path / "compressed")
    assert isinstance(model.model.encoder.conv1, CompressedModule)
    assert torch.equal(model(**inputs).logits, cls.from_pretrained(tmp_path / "plain")(**inputs).logits)


def test_a_parameter_of_no_layer(tmp_path: Path) -> None:
    """ViT: position embeddings are a 3-D parameter of a module with children."""
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=128,
        patch_size=8,
    )
    torch.manual_seed(0)
    transformers.ViTModel(config).bfloat16().save_pretrained(tmp_path / "plain")
    compress(tmp_path / "plain", tmp_path / "compressed")
    model = transformers.AutoModel.from_pretrained(tmp_path / "compressed")
    assert is_compressed(model.embeddings, "position_embeddings")
    assert type(model.embeddings).__name__ == "ViTEmbeddings"
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = transformers.AutoModel.from_pretrained(tmp_path / "plain")(pixels).last_hidden_state
    assert torch.equal(model(pixels).last_hidden_state, expected)
    model.save_pretrained(tmp_path / "again")
    assert verify(tmp_path / "again", against=tmp_path / "plain").ok


def test_weights_that_must_be_computed_from(
    plain: Build, compressed: Build, ids: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fused on disk, apart in the model: decoded while loading, which is said, and right in and out."""
    expected = load(plain("hrm-text"))(ids).logits
    model = load(compressed("hrm-text"))
    assert "decoded while loading" in caplog.text
    assert "gqkv_proj" in caplog.text
    assert isinstance(model.get_output_embeddings(), CompressedModule)
    assert any(name.endswith("self_attn.q_proj.weight") for name in plain_matrices(model))
    assert not any("gqkv" in name for name, _ in model.named_modules())
    assert torch.equal(model(ids).logits, expected)
    model.save_pretrained(tmp_path / "again")
    assert verify(tmp_path / "again", against=plain("hrm-text")).ok
    assert torch.equal(load(tmp_path / "again")(ids).logits, expected)
    encoded = load(plain("hrm-text"), quantization_config=TersorConfig())
    assert torch.equal(encoded(ids).logits, expected)
    model.dequantize().save_pretrained(tmp_path / "plain")
    names = load_file(plain("hrm-text") / "model.safetensors").keys()
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == names


def test_compiling_takes_the_whole_graph(compressed: Build, plain: Build, ids: torch.Tensor) -> None:
    model = load(compressed("llama-tied"))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(ids).logits, load(plain("llama-tied"))(ids).logits)


def test_static_cache(plain: Build, compressed: Build, ids: torch.Tensor) -> None:
    for name in ("llama-tied", "gemma2"):
        options = {
            "max_new_tokens": 6,
            "do_sample": False,
            "cache_implementation": "static",
            "pad_token_id": 0,
        }
        expected = load(plain(name)).generate(ids, attention_mask=torch.ones_like(ids), **options)
        model = load(compressed(name))
        assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **options), expected)


def test_only_what_shrinks_is_compressed(plain: Build, tmp_path: Path) -> None:
    """Noise in every bit stays as it is, and the model is as it was."""
    reference = load(plain("llama"))
    weight = reference.model.layers[0].mlp.up_proj.weight
    noise = torch.randint(-(2**15), 2**15, weight.shape, generator=torch.Generator().manual_seed(0))
    weight.data = noise.to(torch.int16).view(torch.bfloat16)
    reference.save_pretrained(tmp_path / "noise")
    model = load(tmp_path / "noise", quantization_config=TersorConfig())
    assert plain_matrices(model) == ["model.layers.0.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path / "again")
    entries = manifest(tmp_path / "again")
    assert entries["model.layers.0.mlp.up_proj.weight"].codec == "raw"
    assert entries["model.layers.0.mlp.down_proj.weight"].codec == CODEC_HUFFMAN
    twin = load(tmp_path / "again")
    kept = twin.model.layers[0].mlp.up_proj.weight
    assert torch.equal(kept.view(torch.int16), weight.view(torch.int16))


def test_a_base_model_leaves_the_head(compressed: Build, plain: Build, ids: torch.Tensor) -> None:
    from transformers import AutoModel

    expected = AutoModel.from_pretrained(plain("llama"))(ids).last_hidden_state
    assert torch.equal(AutoModel.from_pretrained(compressed("llama"))(ids).last_hidden_state, expected)
