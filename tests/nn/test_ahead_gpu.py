"""Decoding beside the products on a GPU: the plain layers' bits, in eager calls, graphs and compiled steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from at_once import at_once
from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn import ahead_pass, compress, lay_out
from tersor.nn.ahead import Ahead, whole_calls

pytestmark = pytest.mark.gpu

HIDDEN = 1024


class Block(nn.Module):
    """A projection and a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": False, "dtype": torch.bfloat16, "device": "cuda"}
        self.o_proj = nn.Linear(HIDDEN, HIDDEN, **options)
        self.gate_proj = nn.Linear(HIDDEN, 3008, **options)
        self.up_proj = nn.Linear(HIDDEN, 3008, **options)
        self.down_proj = nn.Linear(3008, HIDDEN, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(..., HIDDEN) -> the same."""
        x = x + self.o_proj(torch.tanh(x))
        return x + self.down_proj(torch.tanh(self.gate_proj(x)) * self.up_proj(x))


class Model(nn.Module):
    """Blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(6)])
        self.head = nn.Linear(HIDDEN, 5000, dtype=torch.bfloat16, device="cuda")

    def forward(self, x: Tensor) -> Tensor:
        """(..., HIDDEN) -> (..., 5000)."""
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


@pytest.fixture(params=["compact", "fast"])
def models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A model for exact products, its ring so small that a step goes round it several times, and its plain twin."""
    monkeypatch.setattr(ahead_pass, "RING_BYTES", 24 << 20)
    monkeypatch.setattr(ahead_pass, "PIECE_BYTES", 8 << 20)
    torch.manual_seed(0)
    plain = Model()
    model = copy.deepcopy(plain)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            tiles, offsets, book = torch.ops.tersor.huffman_encode(module.weight)
            parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
            entry = TensorEntry(CODEC_HUFFMAN, "BF16", tuple(module.weight.shape), "0" * 64)
            compress(module, "weight", entry, parts)
    lay_out(model, request.param, exact=True)
    return model, plain


def inputs(tokens: int) -> Tensor:
    return torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)


def order(model: Any) -> ahead_pass.Order:
    (ahead,) = model.__dict__["shared_in_call"]
    assert isinstance(ahead, Ahead) and ahead.call is None and not ahead.vain
    return ahead.order


@pytest.mark.parametrize("tokens", [1, 3, 40, 300])
@torch.inference_mode()
def test_eager(models: tuple[Any, Any], tokens: int) -> None:
    model, plain = models
    for _ in range(20):
        x = inputs(tokens)
        assert torch.equal(model(x), plain(x))
    assert len(order(model).layers) == 25 and max(order(model).ring.behind) > 0


def captured(step: Any, priority: int) -> torch.cuda.CUDAGraph:
    """A graph of `step`, after it ran on the stream that captures it."""
    stream = torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph


@pytest.mark.parametrize("priority", [0, -1])
@pytest.mark.parametrize("tokens", [1, 40])
@torch.inference_mode()
def test_replayed_again_and_again(models: tuple[Any, Any], tokens: int, priority: int) -> None:
    """With other inputs each time and others' work between: a race would show. Two steps are in the graph."""
    model, plain = models
    x, y = inputs(tokens), inputs(tokens)
    out = torch.empty(2, tokens, 5000, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        out[0].copy_(model(x))
        out[1].copy_(model(y))

    graph = captured(step, priority)
    for number in range(100):
        x.copy_(inputs(tokens))
        y.copy_(inputs(tokens))
        expected = plain(x), plain(y)
        out.fill_(float("nan"))
        graph.replay()
        if number % 2:  # what runs in turns with it, and then nothing that waits for it
            assert torch.equal(model(x), expected[0])
        assert torch.equal(out[0], expected[0]) and torch.equal(out[1], expected[1]), number
    for _ in range(50):
        graph.replay()
    assert torch.equal(out[1], expected[1])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@torch.inference_mode()
def test_a_compiled_step(models: tuple[Any, Any], backend: str) -> None:
    """Opaque products, captured too; what the compiler makes of the rest rounds as it does, always the same."""
    model, plain = models
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    x = inputs(1)
    out = torch.empty(1, 5000, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        with whole_calls(model):
            out.copy_(compiled(x))

    step()
    step()
    assert len(order(model).layers) == 25
    graph = captured(step, -1)
    for _ in range(50):
        x.copy_(inputs(1))
        out.fill_(float("nan"))
        graph.replay()
        replayed, expected = out.clone(), plain(x)
        torch.testing.assert_close(replayed, expected, rtol=5e-2, atol=5e-2)
        step()
        assert torch.equal(out, replayed)
        assert backend == "inductor" or torch.equal(out, expected)
    torch.testing.assert_close(compiled(x), expected, rtol=5e-2, atol=5e-2)  # each layer by itself


@torch.inference_mode()
def test_threads_on_streams_of_their_own(models: tuple[Any, Any]) -> None:
    model, plain = models
    model(inputs(1))
    given = [inputs(1), inputs(4), inputs(40)]
    expected = [plain(x) for x in given]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def call(index: int) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(30):
                y = model(given[index])
                stream.synchronize()
                if not torch.equal(y, expected[index]):
                    wrong.append(index)

    at_once(call, 3)
    assert not wrong


@torch.inference_mode()
def test_memory(models: tuple[Any, Any]) -> None:
    """A call takes its ring and gives it back."""
    model, _ = models
    x = inputs(1)
    for _ in range(2):
        model(x)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model(x)
    assert torch.cuda.memory_allocated() <= before
    assert torch.cuda.max_memory_allocated() - before < order(model).ring.nbytes + (1 << 20)
