"""Weights decoded ahead in a model's calls: the same products, nothing kept (on the CPU's operators)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from ahead_models import AHEAD, ALONE, HIDDEN, Block, Model, Operators, aheads, idle, layouts, linear, pair
from torch import Tensor, nn

from tersor.nn import CompressedLinear, ahead_pass, lay_out
from tersor.nn.ahead import whole_calls
from tersor.nn.ahead_pass import source_of
from tersor.nn.scope import Scope


@layouts
def test_the_second_call_decodes_ahead(layout: str) -> None:
    """In one launch where the codec has that, and again and again."""
    model, plain = pair(Model(), layout)
    x = torch.randn(2, 3, HIDDEN).bfloat16()
    for number in range(3):
        with Operators() as operators, torch.inference_mode():
            assert torch.equal(model(x + number), plain(x + number))
        assert operators.count == (
            {AHEAD[layout]: 1 if layout == "compact" else 7} if number else {ALONE[layout]: 7}
        )
        assert idle(model)
    assert isinstance(model, Scope) and type(model).__name__ == "Model"
    assert type(model.blocks[0]) is Block


@layouts
@pytest.mark.parametrize("room", [1, 2 * HIDDEN * HIDDEN * 2, 1 << 20])
@torch.no_grad()
def test_room_for_few(layout: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring is gone round; the weights are those of the plain model all the same."""
    monkeypatch.setattr(ahead_pass, "RING_BYTES", room)
    monkeypatch.setattr(ahead_pass, "PIECE_BYTES", 1)
    model, plain = pair(Model(), layout)
    for _ in range(3):
        x = torch.randn(2, HIDDEN).bfloat16()
        with Operators() as operators:
            assert torch.equal(model(x), plain(x))
    assert operators.count == {AHEAD[layout]: 7}
    (ahead,) = aheads(model)
    assert ahead.order.layers == tuple(range(7)) and len(ahead.order.pieces) == 7
    sizes = ahead.order.ring.sizes
    assert max(sizes) <= ahead.order.ring.nbytes <= max(room, *sizes)


@torch.no_grad()
def test_a_layer_alone_and_one_left_out() -> None:
    """Outside of a call each decodes its own; a weight that nobody wanted is not decoded ahead again."""
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    model(x)
    with Operators() as operators:
        assert torch.equal(model.blocks[0].first(x), plain.blocks[0].first(x))
    assert operators.count == {"huffman_decode": 1} and not aheads(model)[0].vain
    for times in (1, 2, 2):
        assert torch.equal(model(x, True), plain(x, True)) and torch.equal(model(x), plain(x))
        assert aheads(model)[0].vain == {2: times, 5: times} and idle(model)
    with Operators() as operators:
        model(x)
    assert operators.count == {"huffman_decode_to": 1, "huffman_decode": 2}


@torch.no_grad()
def test_another_order() -> None:
    """Layers in turns, or twice: what fits is taken, and the next call knows."""

    class Turning(Model):
        def forward(self, x: Tensor, order: tuple[int, ...] = (0, 1)) -> Tensor:  # type: ignore[override]
            for index in order:
                x = self.blocks[index](x)
            out: Tensor = self.head(x)
            return out

    model, plain = pair(Turning())
    x = torch.randn(2, HIDDEN).bfloat16()
    for order in ((0, 1), (1, 0), (1, 0), (0, 0, 1), (0, 1, 1), (1,), (0, 1), (0, 1)):
        assert torch.equal(model(x, order), plain(x, order)) and idle(model)


@torch.no_grad()
def test_an_error_leaves_nothing_behind() -> None:
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            model(torch.randn(2, HIDDEN + 1).bfloat16())
        assert idle(model)
        assert torch.equal(model(x), plain(x)) and not aheads(model)[0].vain
        assert aheads(model)[0].order.layers == tuple(range(7))


@torch.no_grad()
def test_one_odd_call_is_forgiven() -> None:
    """After one that stops early, the next is as any first one, and then all is decoded ahead again."""
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    for skip in (False, True, False):
        assert torch.equal(model(x, skip), plain(x, skip))
    with Operators() as operators:
        assert torch.equal(model(x), plain(x))
    assert operators.count == {"huffman_decode_to": 1}


@torch.no_grad()
def test_memory_is_free_after_the_last_product() -> None:
    """Not only when the call returns: what comes after may need it."""

    class Looking(Model):
        def forward(self, x: Tensor, skip: bool = False) -> Tensor:
            y = super().forward(x, skip)
            call = aheads(self)[0].call if aheads(self) else None
            rooms.append(call is not None and call._room is None and call._turns.open > 0)
            return y

    rooms: list[bool] = []
    model, _ = pair(Looking())
    for _ in range(2):
        model(torch.randn(2, HIDDEN).bfloat16())
    assert rooms == [False, True]


def test_what_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one dtype, up to their size; not a model of one layer, nor products that need no decoding."""

    class Mixed(nn.Sequential):
        pass

    monkeypatch.setattr(ahead_pass, "PIECE_BYTES", 2 * HIDDEN * HIDDEN * 2)
    model, plain = pair(
        Mixed(*[linear() for _ in range(5)], linear(dtype=torch.float16), linear(dtype=torch.float16))
    )

    def run(model: nn.Sequential) -> Tensor:
        x = torch.ones(1, HIDDEN).bfloat16()
        with torch.no_grad(), whole_calls(model):
            for layer in model:
                x = layer(x.to(layer.weight.dtype))
        return x

    for _ in range(2):
        assert torch.equal(run(model), run(plain))
    assert aheads(model)[0].order.pieces == ((0, 1), (2, 3), (4,), (5, 6))
    assert not aheads(pair(nn.Sequential(linear()))[0])
    lay_out(model, "fast", exact=False, device_type="cpu")
    assert [source_of(layer) is not None for layer in model] == [False] * 5 + [True] * 2


@layouts
@torch.no_grad()
def test_whole_steps_compile_to_opaque_products(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within `whole_calls`; elsewhere a compiled layer decodes its own."""
    model, plain = pair(Model(), layout)
    calls: list[Counter[str]] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(
            Counter(
                str(node.target).split(".")[1] for node in graph.graph.nodes if "tersor" in str(node.target)
            )
        )
        return graph.forward

    x = torch.randn(1, HIDDEN).bfloat16()
    model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for number in range(3):
        with whole_calls(model), monkeypatch.context() as patch:
            patch.setattr(CompressedLinear, "alone", lambda *_: pytest.fail("decodes for itself"))
            assert torch.equal(compiled(x + number), plain(x + number))
        assert idle(model)
    for _ in range(2):
        assert torch.equal(compiled(x), plain(x)) and idle(model)
    assert calls == [{"ahead_linear": 7}, {ALONE[layout]: 7}]


@torch.no_grad()
def test_calls_within_calls() -> None:
    """The inner one neither ends the outer one nor its compiling; both end with an error."""
    model, _ = pair(Model())
    (ahead,) = aheads(model)
    with pytest.raises(ZeroDivisionError), whole_calls(model):
        outer = ahead.call
        with whole_calls(model):
            assert ahead.compiles and ahead.call is outer
        assert ahead.compiles and ahead.call is outer
        raise ZeroDivisionError
    assert not ahead.compiles and idle(model)
