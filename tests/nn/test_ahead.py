"""Weights decoded ahead in a model's calls: the same products, nothing kept, no races (on the CPU's operators)."""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from at_once import at_once
from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn import CompressedLinear, ahead_pass, compress, lay_out, restore
from tersor.nn.ahead import Ahead, whole_calls
from tersor.nn.ahead_pass import Order, Pass, source_of
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


def pair(model: nn.Module, layout: Any = "compact") -> tuple[Any, Any]:
    """The model compressed and laid out, for exact products, and its plain twin."""
    plain = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            tiles, offsets, book = torch.ops.tersor.huffman_encode(module.weight)
            parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
            kind = {torch.bfloat16: "BF16", torch.float16: "F16"}[module.weight.dtype]
            entry = TensorEntry(CODEC_HUFFMAN, kind, tuple(module.weight.shape), "0" * 64)
            compress(module, "weight", entry, parts)
    lay_out(model, layout, exact=True, device_type="cpu")
    return model, plain


def aheads(model: nn.Module) -> list[Ahead]:
    return [ahead for module in model.modules() for ahead in module.__dict__.get("shared_in_call", ())]


def idle(model: nn.Module) -> bool:
    """Whether nothing decoded is left anywhere."""
    return all(ahead.call is None for ahead in aheads(model))


ALONE = {"compact": "huffman_decode", "fast": "window_linear"}
AHEAD = {"compact": "huffman_decode_to", "fast": "window_decode_to"}
layouts = pytest.mark.parametrize("layout", ["compact", "fast"])


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


def test_training_does_not_end_decoding_ahead() -> None:
    """The first layers want no gradient and begin; from the adapter on each decodes its own. No call is the worse."""

    class Adapted(Model):
        def __init__(self) -> None:
            super().__init__()
            self.adapter = nn.Parameter(torch.zeros(HIDDEN, dtype=torch.bfloat16))

        def forward(self, x: Tensor, skip: bool = False) -> Tensor:
            out: Tensor = self.head(self.blocks[1](self.blocks[0](x) + self.adapter))
            return out

    model, plain = pair(Adapted())
    (ahead,) = aheads(model)
    x = torch.randn(2, HIDDEN).bfloat16()
    for _ in range(3):
        with torch.no_grad():
            for _ in range(2):
                model(x)
            with Operators() as operators:
                assert torch.equal(model(x), plain(x))
        assert operators.count == {"huffman_decode_to": 1} and not ahead.vain
        for trained in (model, plain):
            trained.adapter.grad = None
            trained(x).float().square().sum().backward()
        assert torch.equal(model.adapter.grad, plain.adapter.grad) and idle(model)
        assert ahead.order.layers == tuple(range(7))


def test_gradients_are_the_plain_ones() -> None:
    """Autograd keeps weights, so those are decoded apart."""
    model, plain = pair(Model())
    with torch.no_grad():
        model(torch.randn(2, HIDDEN).bfloat16())
    x = torch.randn(2, HIDDEN).bfloat16()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with Operators() as operators:
        model(ours).sum().backward()
    plain(theirs).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    assert operators.count == {"huffman_decode": 7} and idle(model)


@torch.no_grad()
def test_another_thread_decodes_for_itself() -> None:
    """It may be on another stream, which does not wait for what this one decodes."""
    model, plain = pair(Model())
    first, second = model.blocks[0].first, model.blocks[0].second
    x, y = torch.randn(2, HIDDEN).bfloat16(), torch.randn(2, 72).bfloat16()
    model(x)
    seen: list[Counter[str]] = []

    def elsewhere() -> None:
        with Operators() as operators, torch.no_grad():
            assert torch.equal(second(y), plain.blocks[0].second(y))
        seen.append(operators.count)

    (ahead,) = aheads(model)
    with whole_calls(model), Operators() as operators:
        first(x)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert torch.equal(second(y), plain.blocks[0].second(y))
    assert seen == [{"huffman_decode": 1}] and operators.count == {"huffman_decode_to": 1} and idle(model)
    assert ahead.order.layers == (0, 1) and len(ahead.vain) == 5


@torch.no_grad()
def test_threads_that_meet_share_nothing_and_spoil_nothing() -> None:
    """One of them decodes ahead, whoever leaves first; nothing is kept, and the next call decodes ahead again."""
    meet, part = threading.Barrier(2), threading.Barrier(2)

    class Meeting(Model):
        def forward(self, x: Tensor, skip: bool = False, alone: bool = False) -> Tensor:
            if not alone:
                meet.wait(10)
            x = self.blocks[0](x, skip)
            if not alone:
                part.wait(10)
            out: Tensor = self.head(self.blocks[1](x, skip))
            return out

    model, plain = pair(Meeting())
    inputs = [torch.randn(2, HIDDEN).bfloat16() for _ in range(2)]
    results: dict[int, Tensor] = {}

    def call(index: int) -> None:
        with torch.no_grad():
            results[index] = model(inputs[index])

    model(inputs[0], alone=True)
    for _ in range(3):
        results.clear()
        at_once(call)
        assert all(torch.equal(results[index], plain(inputs[index], alone=True)) for index in range(2))
        assert idle(model)
    with Operators() as operators:
        model(inputs[0], alone=True)
    assert operators.count == {"huffman_decode_to": 1}


def test_offloaded_afterwards() -> None:
    """Hooks bring back the layer that runs, not the others: each decodes its own."""
    accelerate = pytest.importorskip("accelerate")
    model, plain = pair(Model())
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    x = torch.randn(2, HIDDEN).bfloat16()
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(x), plain(x)) and idle(model)


@torch.no_grad()
def test_no_memory_for_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then each decodes its own, as long as that fits; later calls ask for less, and before long for none."""
    ring, piece = 4 * HIDDEN * HIDDEN * 2, HIDDEN * HIDDEN * 2
    monkeypatch.setattr(ahead_pass, "RING_BYTES", ring)
    monkeypatch.setattr(ahead_pass, "PIECE_BYTES", piece)
    tries: list[Any] = []
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    model(x)

    def short(*_: Any, **__: Any) -> Any:
        tries.append(None)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, Operators() as operators:
        patch.setattr(ahead_pass.torch, "empty", short)
        ours = model(x)
        assert torch.equal(ours, plain(x)) and operators.count == {"huffman_decode": 7} and idle(model)
    with Operators() as operators:  # there is some again, but less is asked for
        assert torch.equal(model(x), plain(x))
    assert operators.count == {"huffman_decode_to": 7} and aheads(model)[0].order.ring.nbytes <= ring // 2
    with monkeypatch.context() as patch:
        patch.setattr(ahead_pass.torch, "empty", short)
        for _ in range(4):
            assert torch.equal(model(x), plain(x))
    assert len(tries) == 3  # of six calls
    with Operators() as operators:
        assert torch.equal(model(x), plain(x))
    assert operators.count == {"huffman_decode": 7}


@torch.no_grad()
def test_layers_that_change() -> None:
    """Cast, laid out anew, restored or moved between calls: every layer gives what it should."""
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    for _ in range(2):
        assert torch.equal(model(x), plain(x))
    restore(model.blocks[0].second)
    for _ in range(2):
        assert torch.equal(model(x), plain(x)) and idle(model)
    lay_out(model.blocks[1].inner[0], "fast", exact=True, device_type="cpu")
    for _ in range(2):
        assert torch.equal(model(x), plain(x)) and idle(model)
    model.float(), plain.float()
    for _ in range(2):
        assert torch.equal(model(x.float()), plain(x.float())) and idle(model)


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


@torch.no_grad()
def test_copies_and_the_way_back() -> None:
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    model(x)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
        with Operators() as operators:
            assert torch.equal(twin(x), plain(x))
        assert operators.count == {"huffman_decode_to": 1}
        (own,), (theirs,) = aheads(twin), aheads(model)
        assert own.number != theirs.number and set(own.layers) < set(twin.modules())
    lay_out(model, "fast", device_type="cpu")
    assert type(model) is Model and not aheads(model) and torch.equal(model(x), plain(x))
    lay_out(model, "compact", device_type="cpu")
    assert len(aheads(model)) == 1
    first: CompressedLinear = model.blocks[0].first
    restore(first)
    assert type(first) is nn.Linear and torch.equal(model(x), plain(x))


@torch.no_grad()
def test_a_part_is_copied_without_its_model() -> None:
    """By itself, and pickled; a copy of all decodes ahead for itself, and has no hold on what it was made from."""
    model, plain = pair(Model())
    x = torch.randn(2, HIDDEN).bfloat16()
    model(x)
    alone, size = copy.deepcopy(model.head), len(pickle.dumps(model.head))
    assert "ahead" not in alone.__dict__ and torch.equal(alone(x), plain.head(x))
    assert "ahead" not in copy.deepcopy(model.blocks[0]).second.__dict__
    assert size < len(pickle.dumps(model)) / 2
    restore(model.blocks[0].first)
    twin = copy.deepcopy(model)
    ((own,), (theirs,)) = aheads(twin), aheads(model)
    assert twin.head.__dict__["ahead"] == (own, 6) and model.head.__dict__["ahead"] == (theirs, 6)
    assert "ahead" not in twin.blocks[0].first.__dict__
    for _ in range(2):
        with Operators() as operators:
            assert torch.equal(twin(x), plain(x))
    assert operators.count == {"huffman_decode_to": 1}


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


@torch.no_grad()
def test_a_forward_that_was_taken_over() -> None:
    """A scope below it would never be called: each layer decodes its own."""
    plain = Model()
    model = copy.deepcopy(plain)
    model.forward = model.forward  # type: ignore[method-assign]  # as accelerate's hooks do, bound
    pair(model)
    x = torch.randn(2, HIDDEN).bfloat16()
    assert torch.equal(model(x), plain(x))
    assert not aheads(model) and type(model) is Model and "ahead" not in model.head.__dict__


class Streams:
    """Streams and events that only note what comes after what, and that memory is read or written."""

    def __init__(self) -> None:
        self.before: list[set[int]] = []  # of each thing that was done: all that surely was done before
        self.touched: list[tuple[int, int, bool]] = []  # where: from, to; whether it was written
        self.main = self.current = Stream(self)
        self.lanes = (Stream(self), Stream(self))

    def touch(self, begin: int, stop: int, written: bool) -> None:
        known = set(self.current.known)
        self.before.append(known)
        self.touched.append((begin, stop, written))
        self.current.known = known | {len(self.before) - 1}

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        outer, self.current = self.current, stream
        yield
        self.current = outer

    def races(self) -> list[tuple[int, int]]:
        """Pairs that touch the same memory, one of them writing, in no order."""
        found = []
        for later, (begin, stop, writes) in enumerate(self.touched):
            for earlier, (start, end, wrote) in enumerate(self.touched[:later]):
                if start < stop and begin < end and (writes or wrote) and earlier not in self.before[later]:
                    found.append((earlier, later))
        return found


class Stream:
    device = torch.device("cpu")

    def __init__(self, streams: Streams) -> None:
        self.streams, self.known = streams, frozenset[int]() | set()

    def record_event(self) -> Any:
        return frozenset(self.known)

    def wait_event(self, event: Any) -> None:
        self.known = self.known | event

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_no_races(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for in whatever order, nothing is read or overwritten before its time."""
    chance = random.Random(seed)
    monkeypatch.setattr(ahead_pass, "RING_BYTES", chance.choice([1, 3, 5]) * HIDDEN * HIDDEN * 2)
    monkeypatch.setattr(ahead_pass, "PIECE_BYTES", chance.choice([1, 2]) * HIDDEN * HIDDEN * 2)
    model, plain = pair(nn.Sequential(*[linear(chance.choice([32, HIDDEN])) for _ in range(12)]))
    streams, decode = Streams(), ahead_pass._decode_to

    def noted(layers: Any, sources: Any, weights: list[Tensor]) -> None:
        for weight in weights:
            streams.touch(weight.data_ptr(), weight.data_ptr() + weight.nbytes, True)
        decode(layers, sources, weights)

    monkeypatch.setattr(ahead_pass, "_decode_to", noted)
    monkeypatch.setattr(ahead_pass, "_current_stream", lambda _: streams.current)
    monkeypatch.setattr(ahead_pass, "_lanes", lambda *_: streams.lanes)
    monkeypatch.setattr(torch.cuda, "stream", streams.within)
    order, x = Order.of(list(model), range(12)), torch.ones(1, HIDDEN).bfloat16()
    decoded = 0
    for asked in (
        list(range(12)),
        [n for n in range(12) if chance.random() < 0.7],
        chance.sample(range(12), 12),
    ):
        call, where = Pass(list(model), order), (0, 0)
        for number in asked:
            weight = call.take(number, x)
            if call._room is not None:
                where = call._room.data_ptr(), call._room.data_ptr() + call._room.nbytes
            if weight is not None:
                assert torch.equal(weight, plain[number].weight)
                streams.touch(weight.data_ptr(), weight.data_ptr() + weight.nbytes, False)
                decoded += 1
                call.done(number)
                if call._room is None:
                    streams.touch(*where, True)  # by whom the allocator gives it next
        if call._room is not None:
            call.close()
            streams.touch(*where, True)
    assert decoded >= 12 and not streams.races()
    assert any(not written for _, _, written in streams.touched)


def test_the_race_test_sees_races() -> None:
    streams = Streams()
    with streams.within(streams.lanes[0]):
        streams.touch(0, 10, True)
    streams.touch(5, 6, False)
    assert streams.races() == [(0, 1)]
