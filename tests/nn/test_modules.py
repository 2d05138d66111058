"""Compressed modules behave as the plain ones, bit for bit, whatever class they are of."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.nn import CompressedEmbedding, CompressedLinear, CompressedModule, is_compressed, restore

Compress = Callable[..., nn.Module]


class ScaledEmbedding(nn.Embedding):
    """As in Gemma: the table is asked for its dtype beside its rows."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * torch.tensor(8.0).to(self.weight.dtype)


class Conv1D(nn.Module):
    """As in GPT-2: a linear layer that is no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(96, 80))
        self.bias = nn.Parameter(torch.randn(80))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], 80)


class Pair(nn.Module):
    """Two parameters of one module, one of them 3-D."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 70, 96))
        self.second = nn.Parameter(torch.randn(70, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first[2].T @ self.second + x @ self.first[torch.tensor(1)].T @ self.second


def plain(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    if kind is nn.Linear:
        module: nn.Module = nn.Linear(96, 70)
    elif issubclass(kind, nn.Embedding):
        module = kind(50, 96)
    else:
        module = kind()
    return module.to(torch.bfloat16)


def argument(kind: type[nn.Module]) -> Tensor:
    torch.manual_seed(1)
    if issubclass(kind, nn.Embedding):
        return torch.randint(50, (2, 7))
    return torch.randn(2, 5, 96).to(torch.bfloat16)


def names(kind: type[nn.Module]) -> tuple[str, ...]:
    return ("first", "second") if kind is Pair else ("weight",)


KINDS = pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding, ScaledEmbedding, Conv1D, Pair])


@KINDS
def test_forward_is_bit_identical(kind: type[nn.Module], compressed: Compress) -> None:
    expected = plain(kind)(argument(kind))
    module = compressed(plain(kind), *names(kind))
    assert isinstance(module, kind)
    assert isinstance(module, CompressedModule)
    assert torch.equal(module(argument(kind)), expected)


@KINDS
def test_no_plain_weight_is_kept(kind: type[nn.Module], compressed: Compress) -> None:
    module = compressed(plain(kind), *names(kind))
    module(argument(kind))
    held = sum(p.numel() * p.element_size() for p in module.parameters() if p.dim() == 1)
    assert held == sum(p.numel() * p.element_size() for p in module.parameters())
    assert held < 0.85 * sum(p.numel() * 2 for p in plain(kind).parameters())


@KINDS
def test_a_copy_is_independent_and_equal(kind: type[nn.Module], compressed: Compress) -> None:
    module = compressed(plain(kind), *names(kind))
    twin = copy.deepcopy(module)
    for part in module.parameters():
        part.data.zero_()
    assert torch.equal(twin(argument(kind)), plain(kind)(argument(kind)))


@KINDS
def test_pickling(kind: type[nn.Module], compressed: Compress) -> None:
    module = compressed(plain(kind), *names(kind))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert type(twin) is type(module)
    assert torch.equal(twin(argument(kind)), module(argument(kind)))


@KINDS
def test_restore_gives_the_plain_module_back(kind: type[nn.Module], compressed: Compress) -> None:
    module = compressed(plain(kind), *names(kind))
    assert isinstance(module, CompressedModule)
    restore(module)
    assert type(module) is kind
    state, expected = module.state_dict(), plain(kind).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert all(parameter.requires_grad for parameter in module.parameters())


@KINDS
def test_a_cast_is_the_cast_of_the_plain_module(kind: type[nn.Module], compressed: Compress) -> None:
    x = argument(kind)
    x = x.float() if x.is_floating_point() else x
    expected = plain(kind).float()(x)
    module = compressed(plain(kind), *names(kind)).float()
    assert torch.equal(module(x), expected)
    assert torch.equal(module.bfloat16()(argument(kind)), plain(kind)(argument(kind)))  # and nothing was lost


@KINDS
def test_state_dict_round_trip(kind: type[nn.Module], compressed: Compress) -> None:
    module = compressed(plain(kind), *names(kind))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    twin = copy.deepcopy(module)
    for part in twin.parameters():
        part.data.zero_()
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer))
    assert torch.equal(twin(argument(kind)), module(argument(kind)))


def test_classes() -> None:
    assert CompressedLinear.__mro__.index(CompressedModule) < CompressedLinear.__mro__.index(nn.Linear)


def test_own_forward_sits_below_the_subclass(compressed: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's embedding runs its own forward, and below it ours, which never decodes the table."""
    module = compressed(plain(ScaledEmbedding))
    assert isinstance(module, CompressedEmbedding)
    monkeypatch.setattr(CompressedModule, "decode", None)
    monkeypatch.setattr("tersor.nn.stored.Stored.decode", None)
    module(argument(ScaledEmbedding))


def test_only_one_expert_is_decoded(compressed: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    module = compressed(plain(Pair), "first")
    expected = plain(Pair).get_parameter("first")
    monkeypatch.setattr("tersor.nn.stored.Stored.decode", None)
    for index in (0, 3, -1, torch.tensor(2)):
        assert torch.equal(module.first[index], expected[index])


def test_short_rows_and_max_norm_decode_the_whole_table(compressed: Compress) -> None:
    torch.manual_seed(0)
    short = nn.Embedding(300, 24).bfloat16()
    twin = compressed(copy.deepcopy(short))
    ids = torch.tensor([[0, 299, 7]])
    assert torch.equal(twin(ids), short(ids))


def test_weights_are_read_only(compressed: Compress) -> None:
    module = compressed(plain(nn.Linear))
    with pytest.raises(TypeError, match="dequantize"):
        module.weight = torch.zeros(70, 96)
    with pytest.raises(KeyError, match="weight"):
        module.weight = nn.Parameter(torch.zeros(70, 96))


def test_a_sharded_part_is_refused(compressed: Compress) -> None:
    module = compressed(plain(nn.Linear))
    shard = nn.Parameter(module.weight_tiles.data.clone(), requires_grad=False)
    shard.device_mesh = "as DTensor has"
    with pytest.raises(NotImplementedError, match="tensor parallelism"):
        module.weight_tiles = shard


def test_is_compressed(compressed: Compress) -> None:
    module = plain(nn.Linear)
    assert not is_compressed(module)
    compressed(module)
    assert is_compressed(module)
    assert is_compressed(module, "weight")
    assert not is_compressed(module, "bias")
    assert "compressed=['weight']" in repr(module)


def test_torch_compile_takes_the_whole_graph(compressed: Compress) -> None:
    module = compressed(plain(nn.Linear))
    with torch.no_grad():
        traced = torch.compile(module, backend="eager", fullgraph=True)(argument(nn.Linear))
    assert torch.equal(traced, plain(nn.Linear)(argument(nn.Linear)))
