"""Stacked experts: one 3-D parameter assembled from leaves, some compressed and some not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.nn import CompressedModule, ExpertStack, restore, stack_experts
from tersor.nn.surgery import compressed_class

EXPERTS, INNER, HIDDEN = 3, 40, 96

Compress = Callable[..., nn.Module]


class Experts(nn.Module):
    """The shape of Transformers' experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))

    def forward(self, x: Tensor, hit: list[int]) -> Tensor:
        out = torch.zeros_like(x)
        for index in hit:
            gate, up = (x @ self.gate_up_proj[index].T).chunk(2, dim=-1)
            out = out + (gate * up) @ self.down_proj[index].T
        return out


def plain() -> Experts:
    torch.manual_seed(0)
    return Experts().to(torch.bfloat16)


@pytest.fixture
def stacked(compressed: Compress) -> Experts:
    module, leaves = plain(), {}
    for index in range(EXPERTS):
        leaves[f"{index}.gate_proj.weight"] = module.gate_up_proj[index, :INNER].detach().clone()
        leaves[f"{index}.up_proj.weight"] = module.gate_up_proj[index, INNER:].detach().clone()
        leaves[f"{index}.down_proj.weight"] = module.down_proj[index].detach().clone()
    stacks = [
        ExpertStack(
            "gate_up_proj", ("gate_proj", "up_proj"), 0, (EXPERTS, 2 * INNER, HIDDEN), torch.bfloat16
        ),
        ExpertStack("down_proj", ("down_proj",), 0, (EXPERTS, HIDDEN, INNER), torch.bfloat16),
    ]
    stack_experts(module, stacks, leaves)
    for path in leaves:
        if path != "1.up_proj.weight":  # one that did not shrink
            compressed(module.get_submodule(path.rpartition(".")[0]))
    return module


X = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_forward_is_bit_identical(stacked: Experts) -> None:
    assert torch.equal(stacked(X, [0, 1, 2]), plain()(X, [0, 1, 2]))
    assert torch.equal(stacked.gate_up_proj.clone(), plain().gate_up_proj)


def test_only_the_experts_hit_are_decoded(stacked: Experts) -> None:
    expected = plain()(X, [1])
    for part in stacked.get_submodule("0").parameters():
        part.data.zero_()  # undecodable now
    assert torch.equal(stacked(X, [1]), expected)
    with pytest.raises(Exception, match=r"book|offsets|tile"):
        stacked(X, [0])


class Grouped(Experts):
    """A forward that takes the whole parameters, for tokens that are routed."""

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        gate, up = torch.einsum("th,tih->ti", x, self.gate_up_proj[routing]).chunk(2, dim=-1)
        return torch.einsum("ti,thi->th", gate * up, self.down_proj[routing])


def test_a_grouped_forward_decodes_only_the_experts_hit(stacked: Experts) -> None:
    routing = torch.tensor([2, 1, 2, 2, 1])
    reference = plain()
    reference.__class__ = Grouped
    stacked.__class__ = compressed_class(Grouped, ("down_proj", "gate_up_proj"), True)
    for part in stacked.get_submodule("0").parameters():
        part.data.zero_()  # undecodable now
    assert torch.equal(stacked(X, routing), reference(X, routing))
    with pytest.raises(Exception, match=r"book|offsets|tile"):
        stacked.gate_up_proj.clone()  # outside of a forward it is the whole
    with pytest.raises(Exception, match=r"book|offsets|tile"):
        stacked(X, torch.tensor([0, 1, 2, 2, 1]))
    assert stacked.hit is None


def test_names_are_those_on_disk(stacked: Experts) -> None:
    names = set(stacked.state_dict())
    assert {"2.down_proj.weight_book", "2.down_proj.weight_offsets", "2.down_proj.weight_tiles"} <= names
    assert "1.up_proj.weight" in names
    assert not any(name.startswith(("gate_up_proj", "down_proj")) for name in names)


def test_restore(stacked: Experts) -> None:
    twin = copy.deepcopy(stacked)
    assert isinstance(twin, CompressedModule)
    restore(twin)
    assert type(twin) is Experts
    assert twin.state_dict().keys() == plain().state_dict().keys()
    assert torch.equal(twin.gate_up_proj, plain().gate_up_proj)
    assert torch.equal(twin.down_proj, plain().down_proj)


def test_a_cast_reaches_every_expert(stacked: Experts) -> None:
    assert torch.equal(stacked.float()(X.float(), [0, 1]), plain().float()(X.float(), [0, 1]))
