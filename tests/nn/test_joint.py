"""Siblings multiplied as one: the same bits, one product, right however they are called (on the CPU's operators)."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ahead_models import Operators
from torch import Tensor, nn

from at_once import at_once
from tersor.format.errors import UsageError
from tersor.nn import compress, lay_out, restore
from tersor.nn.joint import MAX_TOKENS, Joint, Part
from tersor.nn.scope import Scope

HIDDEN, HEIGHTS = 96, (48, 32, 24)  # the last one's last strip is half full


class Attention(nn.Module):
    """As much of attention as matters here: three projections, called as `calls` says."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        for name, rows in zip(("q_proj", "k_proj", "v_proj"), HEIGHTS, strict=True):
            self.add_module(name, nn.Linear(HIDDEN, rows, bias=bias, dtype=torch.bfloat16))
        self.o_proj = nn.Linear(HIDDEN, HIDDEN, bias=bias, dtype=torch.bfloat16)

    def forward(self, x: Tensor, other: Tensor | None = None, twice: bool = False) -> tuple[Tensor, ...]:
        """The projections of x; of `other` for keys and values, if there is one; of x + 1 too, if `twice`."""
        y = x if other is None else other
        made = (self.q_proj(x), self.k_proj(y), self.v_proj(y))
        if twice:
            z = x + 1
            made += (self.q_proj(z), self.k_proj(z), self.v_proj(z))
        return made


class OnlyQuery(Attention):
    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.q_proj(x), self.q_proj(x), self.o_proj(x)


class InPlace(Attention):
    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        x = x.clone()
        q = self.q_proj(x)
        x.add_(1)
        return q, self.k_proj(x), self.v_proj(x)


def compress_linears(model: nn.Module, entry: Any) -> None:
    """Compress every linear layer of `model`; entry: of a weight."""
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            tiles, offsets, book = torch.ops.tersor.huffman_encode(module.weight)
            parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
            compress(module, "weight", entry(module.weight), parts)


@pytest.fixture
def entry() -> Iterator[Any]:
    from tersor.format.constants import CODEC_HUFFMAN
    from tersor.format.manifest import TensorEntry

    yield lambda weight: TensorEntry(CODEC_HUFFMAN, "BF16", tuple(weight.shape), "0" * 64)


def pair(kind: type[Attention], entry: Any, bias: bool = False, exact: bool = False) -> tuple[Any, Attention]:
    """A joined module, and its plain twin."""
    torch.manual_seed(0)
    plain = kind(bias)
    module = copy.deepcopy(plain)
    compress_linears(module, entry)
    assert lay_out(module, "fast", exact, device_type="cpu") == 4
    return module, plain


def joint(module: Any) -> Joint:
    found: Joint = module.q_proj.joint
    assert module.k_proj.joint is module.v_proj.joint is found
    return found


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_one_product(entry: Any, bias: bool, exact: bool) -> None:
    """Of exact ones each decodes for itself: in the first call when it is asked, then ahead."""
    module, plain = pair(Attention, entry, bias, exact)
    expected: dict[str, int] = {"window_linear": 3 if exact else 1}
    for shape in ((1, 1), (1, 1, 1), (3, 5), (MAX_TOKENS,)):
        x = torch.randn(*shape, HIDDEN).bfloat16()
        with Operators() as products, torch.inference_mode():
            ours = module(x)
        assert same(ours, plain(x)) and products.count == expected
        expected = {"window_decode_to": 3} if exact else expected
    assert joint(module).together and joint(module).ready is None
    assert not hasattr(module.o_proj, "joint") and type(module).__name__ == "Attention"


def test_many_tokens_are_multiplied_apart(entry: Any) -> None:
    module, plain = pair(Attention, entry)
    for shape in ((MAX_TOKENS + 1,), (0,)):
        x = torch.randn(*shape, HIDDEN).bfloat16()
        with Operators() as products:
            ours = module(x)
        assert same(ours, plain(x)) and products.count == {"window_linear": 3}
    assert joint(module).together


def test_two_inputs_one_after_the_other(entry: Any) -> None:
    module, plain = pair(Attention, entry)
    x = torch.randn(2, HIDDEN).bfloat16()
    with Operators() as products:
        ours = module(x, None, True)
    assert same(ours, plain(x, None, True)) and products.count == {"window_linear": 2}


def test_another_input_for_keys(entry: Any) -> None:
    """Right at once, and apart from then on."""
    module, plain = pair(Attention, entry)
    x, y = torch.randn(2, 4, HIDDEN).bfloat16().unbind()
    assert same(module(x, y), plain(x, y))
    assert not joint(module).together
    with Operators() as products:
        assert same(module(x, y), plain(x, y))
    assert products.count == {"window_linear": 3}


@pytest.mark.parametrize("kind", [OnlyQuery, InPlace])
def test_siblings_that_do_not_come_or_come_late(entry: Any, kind: type[Attention]) -> None:
    module, plain = pair(kind, entry)
    x = torch.randn(2, HIDDEN).bfloat16()
    for _ in range(2):
        assert same(module(x), plain(x))
        assert not joint(module).together and joint(module).ready is None


def test_a_sibling_alone(entry: Any) -> None:
    """Outside of its parent each layer multiplies its own rows, and nothing waits for the others."""
    module, plain = pair(Attention, entry, bias=True)
    x = torch.randn(2, HIDDEN).bfloat16()
    for name in ("v_proj", "q_proj", "k_proj", "q_proj"):
        assert same((getattr(module, name)(x),), (getattr(plain, name)(x),))
    assert joint(module).together and joint(module).ready is None


class Meeting(Attention):
    """Calls from threads other than the main one wait for each other, before the siblings and between them."""

    meet = threading.Barrier(2)

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        made = []
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            if threading.current_thread() is not threading.main_thread():
                Meeting.meet.wait(10)
            made.append(layer(x))
        return tuple(made)


def test_threads_that_meet_share_nothing_and_spoil_nothing(entry: Any) -> None:
    """One of them multiplies jointly, the other apart; nothing is kept, and joints stay together for later calls."""
    module, plain = pair(Meeting, entry)
    inputs = [torch.randn(2, HIDDEN).bfloat16() for _ in range(2)]
    results: dict[int, tuple[Tensor, ...]] = {}

    def call(index: int) -> None:
        with torch.no_grad():
            results[index] = module(inputs[index])

    for _ in range(3):
        results.clear()
        at_once(call)
        assert all(same(results[index], plain(inputs[index])) for index in range(2))
        assert joint(module).together and joint(module).ready is None
    with Operators() as products:
        assert same(module(inputs[0]), plain(inputs[0]))
    assert products.count == {"window_linear": 1}


class Scaled(Attention):
    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.q_proj(x).mul_(2), self.k_proj(x), self.v_proj(x), self.o_proj(x)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_gradients(entry: Any, exact: bool, tokens: int) -> None:
    """Of the input and the biases, as the plain layers'; an output may be written into."""
    module, plain = pair(Scaled, entry, bias=True, exact=exact)
    ours, theirs = (torch.randn(1, tokens, HIDDEN).bfloat16().requires_grad_() for _ in range(2))
    ours.data.copy_(theirs.data)
    for model, x in ((module, ours), (plain, theirs)):
        sum(((y * y).sum() for y in model(x)), start=torch.zeros(())).backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name in ("q_proj", "v_proj", "o_proj"):
        torch.testing.assert_close(getattr(module, name).bias.grad, getattr(plain, name).bias.grad)


def test_offloaded_afterwards(entry: Any) -> None:
    """Hooks bring a layer's own arrays back and not the joint's: an error, not a product with nothing."""
    accelerate = pytest.importorskip("accelerate")
    module, _ = pair(Attention, entry)
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
    with torch.no_grad(), pytest.raises(UsageError, match="joined weights were offloaded"):
        module(torch.randn(2, HIDDEN).bfloat16())


def test_an_error_leaves_nothing_behind(entry: Any) -> None:
    module, plain = pair(Attention, entry)
    x = torch.randn(2, HIDDEN).bfloat16()
    with pytest.raises(RuntimeError):
        module(x, torch.randn(2, HIDDEN + 1).bfloat16())
    assert joint(module).ready is None and same(module(x), plain(x))


def test_weights_copies_and_the_way_back(entry: Any) -> None:
    """Each weight under its own name, bit for bit: read, copied, pickled, cast, laid out anew, restored."""
    module, plain = pair(Attention, entry, bias=True)
    x = torch.randn(2, HIDDEN).bfloat16()
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for twin in (module, copy.deepcopy(module), torch.load(saved, weights_only=False)):
        assert isinstance(twin, Scope) and same(twin(x), plain(x))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            ours, theirs = getattr(twin, name).weight.clone(), getattr(plain, name).weight
            assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))
    wide = copy.deepcopy(module).to(torch.float32)
    assert same(wide(x.float()), copy.deepcopy(plain).float()(x.float()))
    compact = copy.deepcopy(module)
    assert lay_out(compact, "compact", device_type="cpu") == 0
    assert type(compact).__name__ == "Attention" and isinstance(compact, Scope)  # it decodes ahead
    assert not any(isinstance(m, Joint) or hasattr(m, "joint") for m in compact.modules())
    assert same(compact(x), plain(x))
    assert lay_out(compact, "fast", device_type="cpu") == 4 and same(compact(x), plain(x))
    restore(module.k_proj)  # one alone leaves the others right
    assert type(module.k_proj) is nn.Linear and same(module(x), plain(x))


class WithTable(Attention):
    """A parent that has a compressed parameter itself."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__(bias)
        self.table = nn.Parameter(torch.randn(64, HIDDEN).bfloat16())

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(x + self.table[: len(x)])


def test_a_parent_that_is_compressed_itself(entry: Any) -> None:
    """Two classes made at run time, one over the other: copied, pickled and undone alike."""
    torch.manual_seed(0)
    plain = WithTable()
    module: Any = copy.deepcopy(plain)
    tiles, offsets, book = torch.ops.tersor.huffman_encode(module.table)
    parts = {"table_tiles": tiles, "table_offsets": offsets, "table_book": book}
    compress(module, "table", entry(module.table), parts)
    compress_linears(module, entry)
    lay_out(module, "fast", device_type="cpu")
    x = torch.randn(3, HIDDEN).bfloat16()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (module, copy.deepcopy(module), torch.load(file, weights_only=False)):
        with torch.no_grad(), Operators() as products:
            assert same(other(x), plain(x))
        assert isinstance(other, Scope) and products.count["window_linear"] == 1
    restore(module)
    assert type(module) is WithTable and same(module(x), plain(x))


def test_a_layer_that_is_replaced(entry: Any) -> None:
    module, plain = pair(Attention, entry)
    module.k_proj = plain.k_proj
    x = torch.randn(2, HIDDEN).bfloat16()
    for _ in range(2):
        assert same(module(x), plain(x))


def test_exact_can_change(entry: Any) -> None:
    module, _ = pair(Attention, entry)
    lay_out(module, "fast", exact=True, device_type="cpu")
    assert all(isinstance(s, Part) and s.exact for s in (module.q_proj.compressed["weight"],))
    with Operators() as products:
        module(torch.randn(1, HIDDEN).bfloat16())
    assert products.count == {"window_linear": 3}


@torch.no_grad()
def test_some_are_decoded_ahead(entry: Any) -> None:
    """Query, but not key and value, which were decoded in vain too often: no guess, and so none that was wrong."""

    class Choosing(Attention):
        def forward(self, x: Tensor, only_query: Any = False) -> tuple[Tensor, ...]:
            return (self.q_proj(x),) if only_query else super().forward(x)

    module, plain = pair(Choosing, entry, exact=True)
    x = torch.randn(2, HIDDEN).bfloat16()
    for only_query in (False, True, False, True, False, False):
        with Operators() as products:
            ours = module(x, only_query)
        assert same(ours, plain(x, only_query)) and joint(module).together
    assert products.count == {"window_decode_to": 1, "window_linear": 2}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", [Attention, OnlyQuery])
def test_it_compiles_whole(entry: Any, kind: type[Attention], exact: bool) -> None:
    """`fullgraph`: one product in the graph where siblings come, right where they do not, nothing kept."""
    module, plain = pair(kind, entry, bias=True, exact=exact)
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(sum("window" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    x = torch.randn(1, 1, HIDDEN).bfloat16()
    for _ in range(3):
        assert same(compiled(x), plain(x))
    assert joint(module).ready is None
    if kind is Attention:
        assert calls == [1]
    else:  # one guess, and after it was wrong the graph that stays
        assert len(calls) == 2 and not joint(module).together
