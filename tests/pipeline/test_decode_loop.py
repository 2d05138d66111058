"""The decode loop says what `generate` says, for plain and compressed weights, again and again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tersor.format.errors import KernelError
from tersor.nn import CompressedLinear, lay_out
from tersor.pipeline.compress import compress
from tersor.pipeline.decode_loop import DecodeLoop, replays
from tersor.pipeline.generate import Generator, decodes_plainly


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
        assert tuple(loop.tokens(ids, 12)) == decoded[0].tokens
        some = loop.tokens(ids, 12)
        assert [next(some), next(some)] == list(decoded[0].tokens[:2])  # enough, and again from the beginning
        assert tuple(loop.tokens(ids, 1)) == decoded[0].tokens[:1]


@pytest.mark.parametrize("layout", ["compact", "fast"])
def test_a_compiled_step_of_an_exact_model(
    layout: Any, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph, in which layers are operators that find their weights decoded ahead; the tokens of `generate`."""
    pytest.importorskip("transformers")
    products: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        products.append(sum("ahead_linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    generator = Generator(compress(demo_model, tmp_path / "made").path, "cpu")
    ids = generator.prompt_ids("The river rises")
    expected = DecodeLoop(generator.model, ids.shape[1] + 12).run(ids, 12).tokens
    lay_out(generator.model, layout, exact=True, device_type="cpu")
    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
        loop = DecodeLoop(generator.model, ids.shape[1] + 12, fuse=True)
    for _ in range(2):
        assert loop.run(ids, 12).tokens == expected
    layers = sum(isinstance(module, CompressedLinear) for module in generator.model.modules())
    assert products == [layers]
    (ahead,) = generator.model.__dict__["shared_in_call"]
    assert len(ahead.order.layers) == layers and ahead.call is None


def test_a_cache_too_short(demo_model: Path) -> None:
    """Refused before anything runs."""
    pytest.importorskip("transformers")
    generator = Generator(demo_model, "cpu")
    with pytest.raises(ValueError, match="do not fit a cache of 8"):
        DecodeLoop(generator.model, 8).run(generator.prompt_ids("The river rises"), 8)


def test_run_by_the_loop(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `tersor run` does on a GPU: tokens and text of `generate`, streamed alike, ended by the same token."""
    pytest.importorskip("transformers")
    generator = Generator(demo_model, "cpu")
    said: list[list[str]] = []

    def run(prompt: str, **options: Any) -> tuple[tuple[int, ...], str]:
        said.append([])
        made = generator.generate(prompt, on_text=said[-1].append, **options)
        return made.tokens, made.text

    prompts = ("The river rises", "A")
    plain = [run(prompt, max_new_tokens=20) for prompt in prompts]
    assert not generator._loops()
    monkeypatch.setattr(Generator, "_loops", lambda self: True)
    assert [run(prompt, max_new_tokens=20) for prompt in prompts] == plain
    assert said[:2] == said[2:] and generator._loop is not None
    generator.model.generation_config.eos_token_id = [plain[0][0][4], 10**6]
    stopped, _ = run(prompts[0], max_new_tokens=20)
    assert stopped == plain[0][0][: plain[0][0].index(stopped[-1]) + 1] and len(stopped) <= 5


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (RuntimeError("operation not permitted when stream is capturing"), "INFO"),
        (torch.OutOfMemoryError("CUDA out of memory"), "INFO"),
        (TypeError("forward() got an unexpected keyword argument 'logits_to_keep'"), "WARNING"),
    ],
)
@pytest.mark.parametrize("where", ["__init__", "_prepare"])
def test_what_the_loop_cannot_do_generate_does(
    where: str,
    demo_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    level: str,
) -> None:
    """Whatever is raised before the first token; it is told, and not tried again unless memory was short."""
    pytest.importorskip("transformers")
    generator = Generator(demo_model, "cpu")
    plain = generator.generate("A", max_new_tokens=5).tokens

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Generator, "_loops", lambda self: True)
    monkeypatch.setattr(DecodeLoop, where, fail)
    with caplog.at_level("INFO"):
        assert generator.generate("A", max_new_tokens=5).tokens == plain
    assert generator._loop is None
    assert generator._loop_failed == (not isinstance(error, torch.OutOfMemoryError))
    (told,) = [record for record in caplog.records if record.name == "tersor.pipeline.generate"]
    assert told.levelname == level and str(error) in told.getMessage()


def test_what_escapes_the_loop(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own errors, and any once a token was given."""
    pytest.importorskip("transformers")
    generator = Generator(demo_model, "cpu")
    monkeypatch.setattr(Generator, "_loops", lambda self: True)

    def broken(*_: Any) -> None:
        raise KernelError("decode_attention: CUDA_ERROR_INVALID_IMAGE")

    def late(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch, pytest.raises(KernelError, match="INVALID_IMAGE"):
        patch.setattr(DecodeLoop, "_prepare", broken)
        generator.generate("A", max_new_tokens=5)
    steps = iter([DecodeLoop._advance, late])
    monkeypatch.setattr(DecodeLoop, "_advance", lambda self: next(steps)(self))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        generator.generate("A", max_new_tokens=5)


def test_attention_is_the_models_own_again(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After steps with the operator for single tokens, and when trying it fails."""
    pytest.importorskip("transformers")
    from tersor.integrations.transformers import attention

    model = Generator(demo_model, "cpu").model
    own, loop = model.config._attn_implementation, DecodeLoop(model, 16)
    seen: list[str] = []

    def trial(token: torch.Tensor) -> torch.Tensor:
        seen.append(model.config._attn_implementation)
        if len(seen) == 1:
            raise RuntimeError("out of memory")
        return token

    monkeypatch.setattr(attention, "serves", lambda *_: True)
    monkeypatch.setattr(loop, "_eager_next", trial)
    with pytest.raises(RuntimeError, match="out of memory"), loop._decode_attention():
        pytest.fail("nothing is captured")
    assert model.config._attn_implementation == own
    with loop._decode_attention():
        assert model.config._attn_implementation == attention.DECODE_ATTENTION
    assert model.config._attn_implementation == own
    assert seen == [attention.DECODE_ATTENTION] * 2


def test_what_greedy_decoding_alone_would_not_say(demo_model: Path) -> None:
    """Generation settings beyond the likeliest token are left to `generate`."""
    pytest.importorskip("transformers")
    model = Generator(demo_model, "cpu").model
    assert decodes_plainly(model)
    for name, value in (("repetition_penalty", 1.2), ("suppress_tokens", [3]), ("num_beams", 2)):
        before = getattr(model.generation_config, name)
        setattr(model.generation_config, name, value)
        assert not decodes_plainly(model)
        setattr(model.generation_config, name, before)


def tiny(kind: str, **options: Any) -> Any:
    """A model of two layers and random weights, large enough for tokens to differ."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads, **ends, **options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.dim() > 1 else 1
    return model


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Mistral", {"sliding_window": 12}),
        ("OlmoHybrid", {"layer_types": ["linear_attention", "full_attention"]}),
        ("Llama", {}),
    ],
)
def test_caches_of_every_kind(kind: str, options: dict[str, Any]) -> None:
    """A cache that counts in Python is not captured; and none remembers the prompt before."""
    model = tiny(kind, **options)
    ids, others = torch.randint(3, 90, (2, 1, 9)).unbind()
    loop = DecodeLoop(model, 40)
    assert replays(loop._cache) == decodes_plainly(model) == (kind == "Llama")
    if kind != "Llama":
        with pytest.raises(ValueError, match="cannot be captured"):
            DecodeLoop(model, 40, graph=True)
    loop.run(others, 20)
    tokens = loop.run(ids, 20).tokens
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
    assert tokens == tuple(whole[0, 9:].tolist()) and len(set(tokens)) > 3


@pytest.mark.parametrize(("kind", "options"), [("Llama", {}), ("Mistral", {"sliding_window": 32})])
def test_what_can_be_replayed(kind: str, options: dict[str, Any]) -> None:
    """A step recorded at one position and replayed at others, as a graph is: right where `replays` says so."""
    from torch.fx.experimental.proxy_tensor import make_fx

    model = tiny(kind, attn_implementation="sdpa", **options).requires_grad_(False)
    cache = DecodeLoop(model, 24)._cache
    ids, token = torch.randint(3, 90, (1, 9)), torch.tensor([[5]])

    def step(token: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=token, past_key_values=cache).logits
        return logits

    with torch.no_grad():
        step(token)  # the cache gets its buffers, which recording takes as they are
        recorded = make_fx(step)(token)
        made = []
        for run in (recorded, step):
            for layer in cache.layers:
                layer.reset()
            model(input_ids=ids, past_key_values=cache)
            made.append(torch.cat([run(token + i) for i in range(3)]))
    assert torch.allclose(made[0], made[1]) == replays(cache) == (kind == "Llama")


@pytest.mark.gpu
def test_a_cache_shorter_than_the_warm_up(demo_model: Path) -> None:
    """What runs before the capture fits, too."""
    pytest.importorskip("transformers")
    model = Generator(demo_model, "cuda").model
    ids = torch.tensor([[5, 9]], device="cuda")
    assert DecodeLoop(model, 3).run(ids, 1).tokens == DecodeLoop(model, 64).run(ids, 1).tokens


@pytest.mark.gpu
def test_run_on_a_gpu(demo_model: Path, tmp_path: Path) -> None:
    """Captured once for prompts of several lengths; the first tokens are those of `generate`."""
    pytest.importorskip("transformers")
    generator = Generator(compress(demo_model, tmp_path / "made").path, "cuda")
    first = generator.generate("The river rises", max_new_tokens=12)
    loop = generator._loop
    assert loop is not None and generator.generate("A", max_new_tokens=12).tokens
    assert generator._loop is loop and generator.generate("The river rises", max_new_tokens=12) is not first
    again = generator.generate("The river rises", max_new_tokens=12)
    assert again.tokens == first.tokens
    ids = generator.prompt_ids("The river rises").to("cuda")
    with torch.inference_mode():
        whole = generator.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=2
        )
    assert int(whole[0, -1]) == first.tokens[0]
    assert Generator(demo_model, "cuda", exact=True)._loops() is False


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["compact", "fast"])
def test_exact_on_a_gpu(layout: Any, demo_model: Path, tmp_path: Path) -> None:
    """Captured, the tokens of the plain model, step after step; with attention that repeats itself."""
    pytest.importorskip("transformers")
    models = [
        Generator(path, "cuda").model for path in (demo_model, compress(demo_model, tmp_path / "made").path)
    ]
    lay_out(models[1], layout, exact=True)
    for model in models:
        model.set_attn_implementation("sdpa")
    ids = torch.tensor([[5, 9, 17]], device="cuda")
    with sdpa_kernel(SDPBackend.MATH):
        plain, ours = (DecodeLoop(model, 80, graph=True) for model in models)
        expected = plain.run(ids, 64).tokens
        assert all(ours.run(ids, 64).tokens == expected for _ in range(5))
    (ahead,) = models[1].__dict__["shared_in_call"]
    assert len(ahead.order.pieces) > 1 and not ahead.vain
