"""The user's path on a GPU: from_pretrained, generate, the decode loop; tokens as the plain model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tersor

transformers = pytest.importorskip("transformers")

from tersor.integrations.transformers import TersorConfig  # noqa: E402
from tersor.nn.fused import Fused  # noqa: E402
from tersor.nn.linear import CompressedLinear  # noqa: E402
from tersor.pipeline.decode_loop import DecodeLoop  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning"),
]

PROMPT = "The river rises in the mountains of"


@pytest.fixture(scope="module")
def made(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tersor.compress(demo_model, tmp_path_factory.mktemp("gpu") / "made").path


def loaded(path: Path, **options: Any) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, device_map="cuda", **options
    )
    return model.eval()


def prompt_ids(path: Path) -> torch.Tensor:
    ids: torch.Tensor = transformers.AutoTokenizer.from_pretrained(path)(
        PROMPT, return_tensors="pt"
    ).input_ids
    return ids.to("cuda")


def generated(model: Any, ids: torch.Tensor, **options: Any) -> list[int]:
    tokens = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    row: list[int] = tokens[0].tolist()
    return row


@pytest.mark.parametrize("layout", ["fast", "compact"])
def test_exact_layouts_say_the_same(demo_model: Path, made: Path, layout: Any) -> None:
    """Loaded straight to the GPU; eager attention, because fused attention does not repeat itself."""
    ids = prompt_ids(demo_model)
    plain = loaded(demo_model, attn_implementation="eager")
    config = TersorConfig(layout=layout, exact=True)
    ours = loaded(made, attn_implementation="eager", quantization_config=config)
    linear = [m for m in ours.modules() if isinstance(m, CompressedLinear)]
    assert all(isinstance(m.compressed["weight"], Fused) for m in linear) == (layout == "fast")
    assert generated(ours, ids) == generated(plain, ids)
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits.view(torch.int16), plain(ids).logits.view(torch.int16))


def test_compressed_while_loading(demo_model: Path) -> None:
    """A plain checkpoint and a configuration: compressed tensor by tensor, on the GPU."""
    ids = prompt_ids(demo_model)
    plain = loaded(demo_model, attn_implementation="eager")
    ours = loaded(demo_model, attn_implementation="eager", quantization_config=TersorConfig(exact=True))
    assert any(isinstance(m, CompressedLinear) for m in ours.modules())
    assert generated(ours, ids) == generated(plain, ids)


def test_a_static_cache_and_the_decode_loop(made: Path) -> None:
    """generate with a static cache (Transformers may compile it), and our loop with a CUDA graph."""
    ids = prompt_ids(made)
    model = loaded(made)
    growing = generated(model, ids)
    static = generated(model, ids, cache_implementation="static")
    assert len(static) == len(growing)
    assert static[: ids.shape[1] + 1] == growing[: ids.shape[1] + 1]  # later tokens may part: other kernels
    loop = DecodeLoop(model, 256)
    first, again = loop.run(ids, 24), loop.run(ids, 24)
    assert first.tokens == again.tokens
    assert first.tokens[0] == growing[ids.shape[1]]
