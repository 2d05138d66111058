"""plan: sizes from headers, against arithmetic by hand and against what compressing gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crafting import Tensor, file_bytes, gaussian, write_model
from tersor.format.errors import UsageError
from tersor.pipeline.compress import compress
from tersor.pipeline.plan import GPUS_GB, NEAR_LOSSLESS_BITS, RUNTIME_BYTES, kv_bytes_per_token, plan
from tersor.pipeline.source import local_path, looks_like_hub_id

LLAMA_8B = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


@pytest.mark.parametrize(
    ("config", "nbytes"),
    [
        (LLAMA_8B, 2 * 32 * 8 * 128 * 2),  # 128 KiB per token
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 2 * 12 * 768 * 2),
        ({**LLAMA_8B, "head_dim": 256}, 2 * 32 * 8 * 256 * 2),
        ({"text_config": LLAMA_8B, "vision_config": {}}, 2 * 32 * 8 * 128 * 2),
        (
            {"n_layer": 32, "n_head": 71, "hidden_size": 4544, "multi_query": True},
            2 * 32 * 64 * 2,
        ),  # Falcon 7B
        ({}, 0),
        ({"num_hidden_layers": 32}, 0),
    ],
)
def test_kv_cache(config: dict[str, Any], nbytes: int) -> None:
    assert kv_bytes_per_token(config) == nbytes


def test_before_and_after_compressing(demo_model: Path, tmp_path: Path) -> None:
    guessed = plan(demo_model, context=100, gpu_bytes=24 * 10**9)
    made = compress(demo_model, tmp_path / "c")
    known = plan(made.path, context=100, gpu_bytes=24 * 10**9)
    assert [s.codec for s in guessed.sizes] == ["as it is", "lossless", "4-bit", "3-bit"]
    assert [s.codec for s in known.sizes] == ["as it is", "lossless"]
    matrices, others = 786_432, 1_049_728 - 786_432
    for size, bits in zip(guessed.sizes[2:], NEAR_LOSSLESS_BITS.values(), strict=True):
        assert size.weight_bytes == pytest.approx((bits * matrices + 10.8 * others) / 8, rel=0.01)
    assert [s.exact for s in guessed.sizes] == [True, False, False, False]
    assert [s.exact for s in known.sizes] == [True, True]
    assert guessed.sizes[0].weight_bytes == known.sizes[0].weight_bytes == made.original_bytes
    assert known.sizes[1].weight_bytes == made.stored_bytes
    assert guessed.sizes[1].weight_bytes == pytest.approx(made.stored_bytes, rel=0.03)
    assert guessed.kv_bytes_per_token == known.kv_bytes_per_token > 0
    for size in known.sizes:
        assert size.total_bytes == size.weight_bytes + 100 * known.kv_bytes_per_token + RUNTIME_BYTES
        assert size.bits_per_weight == 8 * size.weight_bytes / known.parameters
        assert size.fits_gb == GPUS_GB[0]
        room = 24 * 10**9 - size.weight_bytes - RUNTIME_BYTES
        assert size.context_on_gpu == room // known.kv_bytes_per_token


def test_what_is_not_coded_counts_as_it_is(tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "m", [{"ids": Tensor("I64", (4096, 2), bytes(65536)), "v": gaussian((5000,))}]
    )
    sizes = plan(model).sizes
    assert sizes[0].weight_bytes == sizes[1].weight_bytes == 65536 + 10000


def test_too_small_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m", [{"w": gaussian((64, 64))}])
    (model / "config.json").write_text(json.dumps(LLAMA_8B))
    small = plan(model, gpu_bytes=10**9).sizes[0]
    assert (small.fits_asked, small.context_on_gpu) == (False, 0)
    assert plan(model, context=10**7).sizes[0].fits_gb is None  # a petabyte of cache fits no GPU


def test_a_single_file_has_no_cache(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(file_bytes({"w": gaussian((64, 64))}))
    result = plan(tmp_path / "m.safetensors", gpu_bytes=10**10)
    assert (result.parameters, result.kv_bytes_per_token) == (4096, 0)
    assert (result.sizes[0].fits_asked, result.sizes[0].context_on_gpu) == (True, None)


@pytest.mark.parametrize("name", ["nothing-here", "a/b/c", "./x/y", "", "a/b c"])
def test_what_is_neither_path_nor_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not looks_like_hub_id(name)
    if name:
        with pytest.raises(UsageError, match="no such file"):
            local_path(name)


def test_a_hub_id_is_one_only_if_no_such_path_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert looks_like_hub_id("owner/name-1.5_x")
    (tmp_path / "owner" / "name-1.5_x").mkdir(parents=True)
    assert not looks_like_hub_id("owner/name-1.5_x")
    assert local_path("owner/name-1.5_x") == Path("owner/name-1.5_x")


def test_a_hub_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", offline)
    with pytest.raises(UsageError, match="no route to host"):
        local_path("owner/name")
    with pytest.raises(UsageError, match="no route to host"):
        plan("owner/name")


def test_caches_of_other_families() -> None:
    """Falcon 7B shares one head whatever its config says beside; latent attention is not guessed at."""
    falcon = {"num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True}
    assert kv_bytes_per_token({**falcon, "num_kv_heads": 71}) == 2 * 32 * 64 * 2
    assert kv_bytes_per_token({**falcon, "kv_lora_rank": 512}) == 0
    assert kv_bytes_per_token({**LLAMA_8B, "text_config": None}) == kv_bytes_per_token(LLAMA_8B)
