"""How a slice of the activations comes into shared memory (cuda/activations.cuh, `stage_turns`), emulated.

Every piece, a column of eight tokens, must be written once and where the products look for it, whatever the build; and
no turn may reach beyond the slice. Where warpgroups look is told by wgmma: 16 pieces for each step, as its k goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from exchange_builds import H200
from tersor.kernels.fused.layout import SPAN_COLS
from tersor.kernels.fused.variant import Variant
from tersor.kernels.spqr import linear as spqr
from tersor.kernels.spqr.layout import Geometry as Spqr
from tersor.kernels.window import linear as window
from tersor.kernels.window.layout import Geometry as Window

WARP = 32
STAGE_COLS = 128
STEPS = 4  # of half a stage


def pair_column(build: Variant, pair: int, apart: int) -> int:
    """The even column of the pair that a thread of this number begins with."""
    if not build.warpgroups:
        return 2 * pair
    return pair // (2 * apart) * (4 * apart) + pair % (2 * apart) // 4 * 2 + pair % 4 * apart


def piece_at(build: Variant, column: int, apart: int) -> int:
    """The piece of a column, as it is reckoned for exceptions."""
    if not build.warpgroups:
        return column ^ (column // apart & 3) << 1
    turned = 4 * apart - 2
    twice = (column & turned) * (4 * 16 + 2 * 16 // apart)
    return ((twice & turned * 16) | (column * 16 & ~(turned * 16))) // 16


def steps(apart: int, columns: int) -> Iterator[list[int]]:
    """The columns of each step's k from 0 to 15, stage after stage, as lanes t hold weights (mma.m16n8k16)."""
    half = 16 if apart == 32 else 64  # lane_column(1, 0)
    for stage in range(0, columns, STAGE_COLS):
        for h in (0, 1):
            for i in range(STEPS):
                yield [
                    stage + half * h + apart * (k % 8 // 2) + 4 * i + k // 8 * 2 + k % 2 for k in range(16)
                ]


def staged(build: Variant, columns: int, tokens: int, apart: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Place (tile of eight tokens, piece) of what is written: (column or -1 for zeros, tokens that are there)."""
    few = build.consumers
    staging = WARP * (2 if few < 4 else 4 if few < 8 else 8 if few < 16 else 16)
    assert staging <= WARP * few
    pairs = build.slice_spans * SPAN_COLS // 2
    of_tile, rest = divmod(pairs, staging)
    assert rest == 0 and 2 * staging % (4 * apart) == 0
    all_turns = of_tile * (build.tokens // 8)
    at_once = 1 if (few + build.adding) * build.blocks_per_sm > 20 else min(all_turns, 4)
    written: dict[tuple[int, int], tuple[int, int]] = {}
    for thread in range(staging):
        pair = pair_column(build, thread, apart)
        to = piece_at(build, pair, apart)
        for first in range(0, all_turns, at_once):
            for turn in range(first, min(first + at_once, all_turns)):
                tile, column = turn // of_tile, turn % of_tile * staging * 2
                own = column + pair
                there = max(0, min(tokens - tile * 8, 8)) if own < columns else 0
                for odd in (0, 1):
                    place = tile, to + column + odd
                    assert place not in written
                    written[place] = (own + odd if there else -1), there
    return written


def builds() -> dict[Variant, int]:
    """Those that are used, and the spacing of the columns of neighbouring lanes in their layout."""
    found: dict[Variant, int] = {}
    for shared in (99 << 10, H200[1]):
        for cols in (1024, 4096, 14336):
            for tokens in (8, 9, 16):
                for bits, group in ((3, 16), (4, 32), (8, 16)):
                    for rows in (4096, 57344):
                        found[spqr.variant_for(tokens, Spqr(rows, cols, bits, group, 2), 132, shared)] = 32
            for tokens in (9, 16, 17, 32):
                found[window.variant_for(tokens, Window(4096, cols), 132, shared)] = 16
    # And some that are only tried: slices that turns do not divide, few and many warps.
    found |= dict.fromkeys([Variant(8, 12, 4, 1, 7), Variant(16, 2, 4, 1, 1), Variant(16, 20, 4, 1, 2)], 32)
    wide = {build for build in found if build.warpgroups}
    assert wide
    found |= {replace(build, warpgroups=False): 32 for build in wide}  # on other GPUs
    found |= dict.fromkeys([Variant(16, few, 4, 1, 1, warpgroups=True) for few in (8, 16, 24)], 32)
    found[Variant(16, 8, 2, 2, 1, adders=1, warpgroups=True)] = 16
    return {build: apart for build, apart in found.items() if build.slice_spans}


@pytest.mark.parametrize(("build", "apart"), builds().items(), ids=str)
def test_every_piece_once_where_products_look(build: Variant, apart: int) -> None:
    of_slice = build.slice_spans * SPAN_COLS
    for columns in (of_slice, of_slice - 64, 128, 0):
        for tokens in {build.tokens, build.tokens - 1, 1}:
            written = staged(build, columns, tokens, apart)
            tiles = build.tokens // 8
            assert len(written) == tiles * of_slice  # all of the slice, and no more
            for tile in range(tiles):
                there = max(0, min(tokens - tile * 8, 8))
                for column in range(of_slice):
                    expected = (column, there) if column < columns and there else (-1, 0)
                    assert written[tile, piece_at(build, column, apart)] == expected


@pytest.mark.parametrize("apart", [32, 16])
def test_pieces_of_warpgroups_follow_one_another_as_k_goes(apart: int) -> None:
    """From what is written: that and `piece_at` could be wrong together."""
    build = Variant(16, 8, 4, 2, 1, warpgroups=True)
    written = staged(build, SPAN_COLS, 16, apart)
    expected = [column for step in steps(apart, SPAN_COLS) for column in step]
    assert sorted(expected) == list(range(SPAN_COLS))
    for tile in (0, 1):
        assert [written[tile, piece] for piece in range(SPAN_COLS)] == [(column, 8) for column in expected]


@pytest.mark.parametrize("apart", [32, 16])
def test_warpgroups_stage_without_conflicts(apart: int) -> None:
    """Eight threads write 128 bytes to all banks at a time; a warp reads whole sectors."""
    build = Variant(16, 8, 4, 2, 1, warpgroups=True)
    for first in range(0, WARP * 8, WARP):
        columns = [pair_column(build, thread, apart) for thread in range(first, first + WARP)]
        sectors = [column // 16 for column in columns]
        assert all(sectors.count(sector) == 8 for sector in sectors)
        for eight in range(0, WARP, 8):
            places = [piece_at(build, column, apart) for column in columns[eight : eight + 8]]
            for turn in (0, 1):
                banks = {(place + (turn ^ (thread // 4 & 1))) % 8 for thread, place in enumerate(places)}
                assert len(banks) == 8
