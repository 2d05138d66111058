"""How the work of a product for many tokens is dealt out (tile/split.py), and put together again."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.kernels.tile.split import TILE_ROWS, Split, choose


@pytest.mark.parametrize("rows", [1, 128, 4096, 6144, 14336])
@pytest.mark.parametrize("tokens", [16, 17, 300, 4096])
@pytest.mark.parametrize("stages", [1, 3, 8, 28, 112])
@pytest.mark.parametrize(("places", "cluster"), [(1, 1), (132, 1), (264, 1), (66, 2), (42, 3), (33, 4)])
def test_split_gives_every_unit_to_one_cluster(
    rows: int, tokens: int, stages: int, places: int, cluster: int
) -> None:
    split = choose(rows, tokens, stages, 128, places, cluster)
    assert split.units == -(-rows // TILE_ROWS) * -(-tokens // (128 * cluster)) * stages
    begins = [split.begin(block) for block in range(split.clusters + 1)]
    assert begins[0] == 0
    assert begins[-1] == split.units
    runs = np.diff(begins)
    assert 1 <= split.clusters <= places
    assert runs.min() >= 1  # nobody is launched for nothing
    assert runs.max() - runs.min() <= split.chunk
    assert split.cuts or all(begin % stages == 0 for begin in begins)
    chunks, most = split.units // split.chunk, min(split.units // split.chunk, places)
    assert runs.max() == -(-chunks // most) * split.chunk  # no longer than with all there is room for
    assert split.clusters == most or runs.min() == runs.max()
    places_of = np.argsort([split.dispatched(place) for place in range(split.clusters)])
    for owner in range(split.clusters):  # waits for those that begin in the tile in which it ends
        tile_end = -(-begins[owner + 1] // stages) * stages
        others = [c for c in range(owner + 1, split.clusters) if begins[c] < tile_end]
        assert all(places_of[other] < places_of[owner] for other in others)


@pytest.mark.parametrize(
    "split",
    [
        Split(8, 1, 8 * 32, 1, 132),
        Split(8, 1, 8 * 32, 2, 128),
        Split(28, 3, 28 * 9, 1, 132),
        Split(28, 1, 28 * 32, 14, 64),
        Split(12, 1, 12 * 31, 4, 66),
        Split(5, 2, 50, 1, 7),
        Split(9, 1, 9, 1, 9),
    ],
)
def test_every_tile_is_written_once_from_all_of_its_parts(split: Split) -> None:
    """The bookkeeping of cuda/tile_parts.cuh."""
    left: dict[int, tuple[int, int]] = {}  # cluster -> its part
    owned: dict[int, tuple[int, int]] = {}  # tile -> its owner and the units that it has
    written: dict[int, list[tuple[int, int]]] = {}  # tile -> its parts, in order
    for cluster in range(split.clusters):
        unit, end = split.begin(cluster), split.begin(cluster + 1)
        while unit < end:
            tile, first = divmod(unit, split.stages)
            last = min(split.stages, first + end - unit)
            if first > 0:
                assert cluster not in left  # it has room for one
                left[cluster] = (unit, unit + last - first)
            else:
                assert tile not in owned
                owned[tile] = cluster, unit + last
            unit += last - first
    for tile, (owner, own_end) in owned.items():
        tile_end = (tile + 1) * split.stages
        last_part = owner
        if own_end < tile_end:  # Run::find
            last_part = (tile_end // split.chunk * split.clusters - 1) // (split.units // split.chunk)
        others = [left.pop(cluster) for cluster in range(owner + 1, last_part + 1)]
        written[tile] = [(tile * split.stages, own_end), *others]
        assert len(written[tile]) <= split.parts
    assert not left
    assert sorted(written) == list(range(split.units // split.stages))
    for tile, parts in written.items():
        units = [unit for first, last in parts for unit in range(first, last)]
        assert units == list(range(tile * split.stages, (tile + 1) * split.stages))


@pytest.mark.parametrize("places", [1, 2, 5])
@pytest.mark.parametrize(
    "split",
    [
        Split(8, 1, 8 * 32, 1, 132),
        Split(64, 1, 64, 1, 64),
        Split(5, 2, 50, 1, 7),
        Split(32, 1, 1024, 16, 64),
        Split(32, 1, 1536, 8, 64),
        Split(12, 1, 120, 4, 6),
    ],
)
def test_nobody_waits_for_ever(split: Split, places: int) -> None:
    """Clusters as a GPU dispatches them that has room for few at a time."""
    waiting = [split.dispatched(place) for place in reversed(range(split.clusters))]  # from the end
    assert sorted(waiting) == list(range(split.clusters))
    running: list[int] = []
    done: set[int] = set()
    left: set[int] = set()
    while len(done) < split.clusters:
        while waiting and len(running) < places:
            running.append(waiting.pop())
            left.add(running[-1])  # leaves its part first thing in its run
        tile_end = {c: -(-split.begin(c + 1) // split.stages) * split.stages for c in running}
        ready = [
            c for c in running
            if all(o in left for o in range(c + 1, split.clusters) if split.begin(o) < tile_end[c])
        ]  # fmt: skip
        assert ready, f"{running} wait for ever"
        done.add(ready[-1])
        running.remove(ready[-1])


def test_who_leaves_parts_last_begins_first() -> None:
    halves = choose(4096, 513, 32, 264, 66, 2)
    assert (halves.clusters, halves.period) == (64, 2)
    assert [halves.dispatched(place) % 2 for place in range(64)] == [1] * 32 + [0] * 32
    quarters = choose(6144, 513, 32, 264, 66, 2)  # 8 and 24 of 32, 16 and 16, 24 and 8
    assert (quarters.clusters, quarters.period) == (64, 4)
    assert [quarters.dispatched(place) % 4 for place in range(0, 64, 16)] == [3, 2, 1, 0]
    whole = choose(8192, 512, 64, 256, 66, 2)
    assert (whole.clusters, whole.period) == (64, 1)
    uneven = choose(28672, 513, 32, 264, 66, 2)
    assert (uneven.clusters, uneven.period) == (66, 1)
    assert [uneven.dispatched(place) for place in range(66)] == list(reversed(range(66)))


def test_tiles_are_cut_into_few_parts() -> None:
    even = choose(4096, 512, 28, 256, 66, 2)
    assert (even.chunk, even.clusters, even.parts) == (14, 64, 2)
    assert choose(8192, 512, 16, 256, 66, 2).chunk == 16  # 64 whole tiles
    assert choose(128, 32, 64, 32, 132).parts > 8  # but one tile is for the whole GPU
    assert choose(8192, 513, 224, 264, 66, 2).chunk == 224  # 28 MiB of activations are read together,
    assert choose(8192, 400, 224, 208, 66, 2).cuts
    assert choose(8192, 1000, 56, 256, 66, 2).chunk == 56  # 55 MB of activations are read together,
    assert choose(1024, 1000, 56, 256, 66, 2).clusters > 48  # but not by a few blocks alone


@pytest.mark.parametrize("tokens", [32, 64, 128, 256])
@pytest.mark.parametrize("rows", [128, 1024, 4096, 6144, 14336, 28672])
@pytest.mark.parametrize("stages", [1, 7, 8, 28, 32])
def test_cutting_saves_more_than_it_costs(rows: int, stages: int, tokens: int) -> None:
    split = choose(rows, tokens, stages, tokens, 132)
    tiles = split.units // stages
    assert split.time(tokens) <= -(-tiles // 132) * stages
    assert stages % split.chunk == 0
