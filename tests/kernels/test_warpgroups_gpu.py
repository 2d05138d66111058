"""Products that multiply four strips at a time: the bits of the build for one token, whatever the sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from tersor.kernels import bench_spqr
from tersor.kernels.bench_spqr import FOUR_BITS, THREE_BITS, Kind, Sample
from tersor.kernels.fused import device as fused
from tersor.kernels.fused.variant import Variant
from tersor.kernels.launcher import has_warpgroups, multiprocessors, shared_limit
from tersor.kernels.spqr import device
from tersor.kernels.spqr.linear import variant_for

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
WIDE = Variant(16, 8, 4, 2, 1, warpgroups=True)  # what is launched
NARROW = Variant(16, 2, 2, 2, 1)  # whose activations are where this one's weights are
BUILDS = [
    WIDE,
    replace(WIDE, blocks_per_sm=1, consumers=16),  # four groups to a block: two of eight strips
    replace(WIDE, stages=2, buffers=1),
    replace(WIDE, slot_bytes=256),  # exceptions read late
]
ROWS = (1, 16, 33, 70, 250, 2000)  # fewer strips than a group has, and such as do not come out even
COLS = (40, 128, 600, 1024, 1100, 1536, 2176, 4096, 4104, 14336)  # 14336: too many spans for a cluster
KINDS = [
    *(Kind(bits, 32, 64, 4) for bits in range(2, 9)),
    *(Kind(bits, group, 1, 0) for bits in (2, 4, 8) for group in (16, 128)),
    Kind(3, 16, 64, 4),
    Kind(4, 32, 64, 4, outliers=0.02),
    Kind(4, 32, 64, 4, full_row=True),
]


@pytest.fixture(autouse=True)
def _hopper() -> None:
    if not has_warpgroups(GPU):
        pytest.skip("warpgroups are Hopper's")


@cache
def sample(rows: int, cols: int, kind: Kind = FOUR_BITS) -> Sample:
    return bench_spqr.sample(rows, cols, kind)


def assert_the_bits_of_one_token(own: Sample, build: Variant | None) -> None:
    rows, cols = own.weight.shape
    x = torch.randn(16, cols, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(rows, device="cuda", dtype=torch.bfloat16)
    one_by_one = torch.cat([device.linear(row, own.matrix, bias) for row in x[:, None]])
    for tokens in (9, 15, 16):
        torch.full((tokens, rows), float("nan"), device="cuda", dtype=torch.bfloat16)  # freed: poison
        assert torch.equal(device.linear(x[:tokens], own.matrix, bias, build), one_by_one[:tokens])


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("cols", COLS)
def test_odd_sizes(build: Variant, cols: int) -> None:
    for rows in ROWS:
        own = sample(rows, cols)
        assert_the_bits_of_one_token(own, build)
        assert_the_bits_of_one_token(own, build.in_cluster(own.matrix.geometry, shared_limit(GPU)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("cols", [1100, 4096])
def test_every_kind(kind: Kind, cols: int) -> None:
    own = sample(250, cols, kind)
    alone = variant_for(16, own.matrix.geometry, multiprocessors(GPU), shared_limit(GPU)).in_warpgroups()
    assert alone.warpgroups
    assert_the_bits_of_one_token(own, alone)
    assert_the_bits_of_one_token(own, alone.in_cluster(own.matrix.geometry, shared_limit(GPU)))


@pytest.mark.parametrize(("rows", "cols"), [(33000, 2048), (14341, 4096), (8200, 8192), (12000, 5000)])
@pytest.mark.parametrize("kind", [FOUR_BITS, THREE_BITS], ids=str)
def test_many_rounds(rows: int, cols: int, kind: Kind) -> None:
    own = bench_spqr.sample(rows, cols, kind)
    assert fused.chosen(variant_for, 16, own.matrix.geometry, GPU).warpgroups
    assert_the_bits_of_one_token(own, None)


def test_what_is_not_there_is_not_multiplied() -> None:
    """Nothing is copied for columns that a row does not have: in their place is what shared memory had, here NaN."""
    before = sample(4000, 4096)
    nan = torch.full((16, 4096), float("nan"), device="cuda", dtype=torch.bfloat16)
    for cols in (40, 600, 1100, 2176):
        own = sample(250, cols)
        assert device.linear(nan, before.matrix, None, NARROW).isnan().all()
        assert_the_bits_of_one_token(own, WIDE)
