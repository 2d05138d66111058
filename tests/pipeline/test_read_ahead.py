"""Reading ahead: in order, within the budget, and never stuck."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from crafting import Tensor, file_bytes
from tersor.format.errors import BadRange
from tersor.format.shard import Shard, read_shard
from tersor.pipeline.read_ahead import Budget, read_ahead


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({f"t{i}": Tensor("U8", (10,), bytes([i]) * 10) for i in range(20)}))
    return read_shard(path)


@pytest.mark.parametrize("total", [1, 10, 25, 1000])
def test_in_order_within_any_budget(shard: Shard, total: int) -> None:
    budget = Budget(total)
    seen = []
    for _, name, data in read_ahead([(shard, name, 10) for name in shard.tensors], budget):
        seen.append((name, data[0]))
        assert budget._held <= max(total, 10)
        budget.give(10)
    assert seen == [(f"t{i}", i) for i in range(20)]
    assert budget._held == 0


def test_waits_for_what_another_thread_gives_back(shard: Shard) -> None:
    budget = Budget(15)
    timers = []
    for _ in read_ahead([(shard, name, 10) for name in list(shard.tensors)[:4]], budget):
        timers.append(threading.Timer(0.01, budget.give, [10]))
        timers[-1].start()
    for timer in timers:
        timer.join()
    assert budget._held == 0


def test_a_budget_counts() -> None:
    budget = Budget(10)
    assert budget.try_take(100)  # alone, anything goes
    assert not budget.try_take(1)
    budget.give(100)
    assert budget.try_take(6)
    assert budget.try_take(4)
    assert not budget.try_take(1)


def test_what_fails_to_read_is_raised_where_it_is_wanted(shard: Shard) -> None:
    shard.path.write_bytes(shard.path.read_bytes()[:-1])
    names = []
    with pytest.raises(BadRange, match="'t19'"):
        for _, name, _ in read_ahead([(shard, name, 10) for name in shard.tensors], Budget(1000)):
            names.append(name)
    assert len(names) == 19


def test_leaving_early_ends_the_reader(shard: Shard) -> None:
    before = threading.active_count()
    for _ in read_ahead([(shard, name, 10) for name in shard.tensors], Budget(1000)):
        break
    assert threading.active_count() <= before + 1
