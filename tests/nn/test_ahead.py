"""Weights of a block decoded in one go: the same products, one launch, nothing kept (on the CPU's operators)."""

from __future__ import annotations

import copy
import io
import threading
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from at_once import at_once
from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn import CompressedLinear, ahead, compress, lay_out, restore
from tersor.nn.scope import Scope

HIDDEN = 96


def linear(rows: int = HIDDEN, cols: int = HIDDEN, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    return nn.Linear(cols, rows, dtype=dtype)


class Block(nn.Module):
    """Layers one after the other, one of them in a module of its own; `skip` leaves one out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(72), linear(HIDDEN, 72)
        self.inner = nn.Sequential(linear())

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """(..., HIDDEN) -> the same."""
        x = torch.tanh(self.second(self.first(x)))
        return x if skip else x + self.inner(x)


class Model(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = linear(40)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """(..., HIDDEN) -> (..., 40)."""
        for block in self.blocks:
            x = block(x, skip)
        out: Tensor = self.head(x)
        return out


class Operators(TorchDispatchMode):
    """Counts tersor's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tersor":
            self.count[func._opname] += 1
        return func(*args, **(kwargs or {}))


def pair(model: nn.Module) -> tuple[Any, Any]:
    """The model compressed and laid out compactly, and its plain twin."""
    plain = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            tiles, offsets, book = torch.ops.tersor.huffman_encode(module.weight)
            parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
            kind = {torch.bfloat16: "BF16", torch.float16: "F16"}[module.weight.dtype]
            entry = TensorEntry(CODEC_HUFFMAN, kind, tuple(module.weight.shape), "0" * 64)
            compress(module, "weight", entry, parts)
    assert lay_out(model, "compact", device_type="cpu") == 0
    return model, plain


def batches(model: Any) -> list[ahead.Batch]:
    return [b for module in model.modules() for b in module.__dict__.get("batches", ())]


def idle(model: Any) -> bool:
    """Whether nothing decoded is left anywhere."""
    return all(batch.waiting is None for batch in batches(model))


def test_one_launch_for_a_block() -> None:
    model, plain = pair(Model())
    x = torch.randn(2, 3, HIDDEN).bfloat16()
    with Operators() as operators, torch.inference_mode():
        assert torch.equal(model(x), plain(x))
    assert operators.count == {"huffman_decode_many": 2, "huffman_decode": 1}
    assert idle(model) and all(batch.together for batch in batches(model))
    assert isinstance(model.blocks[0], Scope) and type(model.blocks[0]).__name__ == "Block"


def test_a_layer_alone_and_one_left_out() -> None:
    """Outside of the block each decodes its own; a weight that nobody wanted ends it."""
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    assert torch.equal(model.blocks[0].first(x), plain.blocks[0].first(x))
    assert all(batch.together for batch in batches(model))
    for _ in range(2):
        assert torch.equal(model(x, True), plain(x, True)) and torch.equal(model(x), plain(x))
    assert idle(model) and not any(batch.together for batch in batches(model))


def test_an_error_leaves_nothing_behind() -> None:
    model, plain = pair(Model())
    with pytest.raises(RuntimeError):
        model(torch.randn(2, HIDDEN + 1).bfloat16())
    assert idle(model)
    x = torch.randn(2, HIDDEN).bfloat16()
    assert torch.equal(model(x), plain(x)) and all(batch.together for batch in batches(model))


def test_a_layer_called_twice() -> None:
    class Twice(Block):
        def forward(self, x: Tensor, skip: bool = False) -> Tensor:
            return self.second(self.first(x)) + self.second(self.first(x)) + self.inner(x)

    model, plain = pair(nn.Sequential(nn.ModuleList([Twice()])))
    x = torch.randn(2, HIDDEN).bfloat16()
    assert torch.equal(model[0][0](x), plain[0][0](x)) and idle(model)


def test_another_thread_decodes_for_itself() -> None:
    """It may be on another stream, which does not wait for what this one decodes."""
    model, plain = pair(Model())
    first, second = model.blocks[0].first, model.blocks[0].second
    x, y = torch.randn(2, HIDDEN).bfloat16(), torch.randn(2, 72).bfloat16()
    seen: list[Counter[str]] = []

    def elsewhere() -> None:
        with Operators() as operators, torch.no_grad():
            assert torch.equal(second(y), plain.blocks[0].second(y))
        seen.append(operators.count)

    batch = batches(model)[0]
    before = batch.begin()
    with torch.no_grad():
        first(x)  # decodes for all
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [{"huffman_decode": 1}] and batch.waiting is not None
    assert batch.waiting.weights[1] is not None
    batch.end(before, False)


def test_threads_that_meet_in_a_block_share_nothing_and_spoil_nothing() -> None:
    """One of them decodes ahead, whoever leaves first; nothing is kept, and the next call decodes ahead again."""
    meet, part = threading.Barrier(2), threading.Barrier(2)

    class Meeting(Block):
        def forward(self, x: Tensor, skip: bool = False) -> Tensor:
            inside = threading.current_thread() is not threading.main_thread()
            if inside:
                meet.wait(10)
            x = self.first(x)
            if inside:
                part.wait(10)
            return self.second(x) + self.inner(self.second(x))

    class Plainly(Block):
        def forward(self, x: Tensor, skip: bool = False) -> Tensor:
            x = self.first(x)
            return self.second(x) + self.inner(self.second(x))

    torch.manual_seed(0)
    model, _ = pair(nn.Sequential(nn.ModuleList([Meeting()])))
    torch.manual_seed(0)
    plain: Any = Plainly()
    inputs = [torch.randn(2, HIDDEN).bfloat16() for _ in range(2)]
    results: dict[int, Tensor] = {}

    def call(index: int) -> None:
        with torch.no_grad():
            results[index] = model[0][0](inputs[index])

    for _ in range(3):
        results.clear()
        at_once(call)
        assert all(torch.equal(results[index], plain(inputs[index])) for index in range(2))
        assert idle(model) and batches(model)[0].together
    with Operators() as operators, torch.no_grad():
        model[0][0](inputs[0])
    assert operators.count["huffman_decode_many"] == 1


def test_offloaded_afterwards() -> None:
    """Hooks bring back the layer that runs, not the others of its batch: each decodes its own."""
    accelerate = pytest.importorskip("accelerate")
    model, plain = pair(Model())
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    x = torch.randn(2, HIDDEN).bfloat16()
    with torch.no_grad():
        assert torch.equal(model(x), plain(x)) and idle(model)


def test_what_is_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the scratch's size, of one dtype, not experts in lists within, not single layers."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[linear() for _ in range(5)], linear(dtype=torch.float16))
            self.experts = nn.ModuleList([linear() for _ in range(2)])

    monkeypatch.setattr(ahead, "_SCRATCH_BYTES", 2 * HIDDEN * HIDDEN * 2)
    model, _ = pair(nn.Sequential(nn.ModuleList([Mixed()]), linear()))
    layers = list(model[0][0].layers)
    assert [list(batch.members) for batch in batches(model)] == [layers[:2], layers[2:4]]


def test_copies_and_the_way_back() -> None:
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
        with Operators() as operators:
            assert torch.equal(twin(x), plain(x))
        assert operators.count["huffman_decode_many"] == 2
        members = {m for batch in batches(twin) for m in batch.members}
        assert members < set(twin.modules()) and not members & set(model.modules())
    wide = copy.deepcopy(model).to(torch.float32)
    assert torch.equal(wide(x.float()), copy.deepcopy(plain).float()(x.float()))
    lay_out(model, "fast", device_type="cpu")
    assert type(model.blocks[0]) is Block and not batches(model) and torch.equal(model(x), plain(x))
    lay_out(model, "compact", device_type="cpu")
    assert len(batches(model)) == 2
    first: CompressedLinear = model.blocks[0].first
    restore(first)
    assert type(first) is nn.Linear and torch.equal(model(x), plain(x))


def test_it_compiles_whole() -> None:
    model, plain = pair(Model())
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(sum("huffman_decode" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled, x = torch.compile(model, fullgraph=True, backend=backend), torch.randn(1, HIDDEN).bfloat16()
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(compiled(x), plain(x))
    assert calls == [3] and idle(model)
