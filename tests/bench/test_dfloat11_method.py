"""The benchmark's copy of DFloat11's method, on the CPU: groups are decoded when they run, and to the right bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tersor.kernels import ops  # noqa: F401  (defines the operator)
from tersor.kernels.dfloat11.layout import Buffers

BENCH = Path(__file__).parents[2] / "bench"
WIDTH, VOCABULARY = 8, 40

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="benchmarks are not part of a source distribution")


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("dfloat11_method")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = (
            nn.Linear(WIDTH, 24),
            nn.LayerNorm(24),
            nn.Linear(24, WIDTH, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.norm(self.up(x)))
        return y


class Model(nn.Module):
    """With the names by which the method finds its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.model.layers = nn.ModuleList(Block() for _ in range(3))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.device = torch.device("cpu")

    def forward(self, ids: Tensor) -> Tensor:
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x)
        logits: Tensor = self.lm_head(x)
        return logits


class Fake:
    """In the kernel's place: decodes by NumPy, and notes that it did."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda decoded: decoded) -> None:
        self.spoil = spoil
        self.done: list[str | Buffers] = []  # what was decoded, and what ran

    def __call__(self, buffers: Buffers) -> Callable[[Tensor], None]:
        def launch(out: Tensor) -> None:
            decoded = self.spoil(torch.ops.tersor.dfloat11_decode(*vars(buffers).values()))
            out[: len(decoded)] = decoded
            self.done.append(buffers)

        return launch


@pytest.fixture
def model(method: ModuleType) -> Model:
    torch.manual_seed(0)
    made = Model().bfloat16()
    method.repeat_first(made.model.layers)
    return made


def weights(group: nn.Module) -> list[nn.Parameter]:
    return [m.weight for m in group.modules() if isinstance(m, nn.Linear | nn.Embedding)]


def test_every_group_is_decoded_right_before_it_runs(method: ModuleType, model: Model) -> None:
    ids = torch.arange(VOCABULARY)
    with torch.inference_mode():
        expected = model(ids)
    fake = Fake()
    method.Method(model, fake).decode_before(model.model.embed_tokens)
    groups = {"embedding": model.model.embed_tokens, "head": model.lm_head}
    groups |= {f"block {i}": block for i, block in enumerate(model.model.layers)}
    for name, group in groups.items():
        for module in group.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.register_forward_hook(lambda *_, name=name: fake.done.append(name))
    for _ in range(2):  # and again, over what the last group left
        fake.done.clear()
        with torch.inference_mode():
            assert torch.equal(model(ids), expected)
        ran = [step if isinstance(step, str) else "decoded" for step in fake.done]
        blocks = [step for i in range(3) for step in ("decoded", f"block {i}", f"block {i}")]
        assert ran == ["decoded", "embedding", *blocks, "decoded", "head"]
    decoded = [step for step in fake.done if isinstance(step, Buffers)]
    assert len({buffers.encoded_exponent.data_ptr() for buffers in decoded}) == 5  # each has its own copy


def test_weights_are_views_of_one_buffer_as_large_as_the_largest_group(
    method: ModuleType, model: Model
) -> None:
    groups = (*model.model.layers, model.lm_head, model.model.embed_tokens)
    before = [[weight.detach().clone() for weight in weights(group)] for group in groups]
    fake = Fake()
    method.Method(model, fake).decode_before(model.model.embed_tokens)
    storage = model.lm_head.weight.untyped_storage()
    assert storage.nbytes() == 2 * max(sum(weight.numel() for weight in group) for group in before)
    for group, plain in zip(groups, before, strict=True):
        at = storage.data_ptr()
        for weight, same in zip(weights(group), plain, strict=True):
            assert weight.data_ptr() == at  # one behind the other
            assert weight.shape == same.shape
            assert not weight.requires_grad
            at += weight.nbytes
    with torch.inference_mode():
        model.model.layers[1](torch.zeros(1, WIDTH, dtype=torch.bfloat16))
    for weight, same in zip(weights(model.model.layers[1]), before[1], strict=True):
        assert torch.equal(weight, same)
    assert not torch.equal(model.lm_head.weight, before[3][0])  # until it runs


def flip_last_bit(decoded: Tensor) -> Tensor:
    spoilt = decoded.clone()
    spoilt.view(torch.int16)[-1] ^= 1
    return spoilt


@pytest.mark.parametrize("spoil", [flip_last_bit, lambda decoded: decoded[:-1]], ids=["a bit", "one missing"])
def test_a_wrong_decode_is_an_error(
    spoil: Callable[[Tensor], Tensor], method: ModuleType, model: Model
) -> None:
    with pytest.raises(ValueError, match="Block: its weights do not decode to the original bits"):
        method.Method(model, Fake(spoil))
    fake = Fake()
    own = method.Method(model, fake)
    own.decode_before(model.model.embed_tokens)  # leaves the right bits, which must not be taken for new ones
    fake.spoil = spoil
    with pytest.raises(ValueError, match="Embedding: its weights do not decode"):
        own.decode_before(model.model.embed_tokens)
