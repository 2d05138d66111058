"""A deferred weight: metadata for nothing, a part for an index, the whole for anything else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tersor.nn import DeferredWeight, materialize


class Counting:
    """A source that counts what it is asked for."""

    name = "weight"

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.decodes, self.selects = weight, 0, []
        self.shape, self.dtype = tuple(weight.shape), weight.dtype

    def device(self, module: nn.Module) -> torch.device:
        return self.weight.device

    def decode(self, module: nn.Module) -> Tensor:
        self.decodes += 1
        return self.weight

    def select(self, module: nn.Module, index: int) -> Tensor:
        self.selects.append(index)
        return self.weight[index]


@pytest.fixture
def source() -> Counting:
    return Counting(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def deferred(source: Counting) -> DeferredWeight:
    return DeferredWeight(nn.Module(), source)


def test_metadata_decodes_nothing(source: Counting, deferred: DeferredWeight) -> None:
    assert deferred.dtype == torch.float32
    assert deferred.shape == (4, 6)
    assert deferred.device == torch.device("cpu")
    assert (deferred.size(0), deferred.dim(), deferred.numel(), len(deferred)) == (4, 2, 24, 4)
    assert deferred.is_floating_point()
    assert not deferred.requires_grad
    assert isinstance(deferred, Tensor)
    assert source.decodes == 0


def test_operations_give_plain_tensors(source: Counting, deferred: DeferredWeight) -> None:
    x = torch.randn(3, 6)
    for result, expected in (
        (torch.nn.functional.linear(x, deferred), x @ source.weight.T),
        (deferred.T, source.weight.T),
        (deferred + 1, source.weight + 1),
        (deferred.data, source.weight),
        (deferred[1:3], source.weight[1:3]),
        (torch.cat([deferred, deferred]), torch.cat([source.weight, source.weight])),
        (deferred.clone(), source.weight),
        (torch.stack([deferred])[0], source.weight),
        (copy.deepcopy(deferred), source.weight),
    ):
        assert type(result) is Tensor
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert source.decodes == 1  # kept while the caller keeps the deferred weight


@pytest.mark.parametrize(("index", "row"), [(0, 0), (-1, 3), (torch.tensor(2), 2)])
def test_a_number_selects(index: int | Tensor, row: int, source: Counting, deferred: DeferredWeight) -> None:
    assert torch.equal(deferred[index], source.weight[row])
    assert source.selects == [row]
    assert source.decodes == 0


def test_an_index_outside_is_the_usual_error(deferred: DeferredWeight) -> None:
    with pytest.raises(IndexError):
        deferred[4]


def test_a_mask_is_no_number(source: Counting, deferred: DeferredWeight) -> None:
    assert torch.equal(deferred[torch.tensor(True)], source.weight[torch.tensor(True)])
    assert source.selects == []


def test_it_prints_as_the_weight(source: Counting, deferred: DeferredWeight) -> None:
    assert repr(deferred) == repr(source.weight)


def test_materialize(source: Counting, deferred: DeferredWeight) -> None:
    assert materialize(deferred) is source.weight
    assert materialize(source.weight) is source.weight
