"""Where decoding ahead ends: training, threads, offloading, memory, changes, copies."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections import Counter
from typing import Any

import pytest
import torch
from ahead_models import HIDDEN, Model, Operators, aheads, idle, pair
from torch import Tensor, nn

from at_once import at_once
from tersor.nn import CompressedLinear, ahead_pass, lay_out, restore
from tersor.nn.ahead import whole_calls


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
