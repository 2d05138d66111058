"""The `spqr` layout in NumPy gives FORMAT.md's weights, bit for bit, and takes the bits promised."""

from __future__ import annotations

import numpy as np
import pytest

from matrices import grid_matrix
from spqr_cases import KINDS, SIZES, matrix, with_full_row
from tersor.codec.quantized.dequantize import dequantize
from tersor.codec.quantized.matrix import Quantized
from tersor.format.constants import ALIGN
from tersor.kernels.spqr.layout import SPREAD, Geometry, geometry_of, slots
from tersor.kernels.spqr.reference import Packed, pack, unpack


def check(q: Quantized) -> Packed:
    packed = pack(q)
    assert packed.stages.size == packed.geometry.stage_total
    assert packed.records.size == ALIGN * packed.places[-1]
    assert np.array_equal(unpack(packed).view(np.uint32), dequantize(q).view(np.uint32))
    return packed


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_every_width_and_kind(kind: str, width: int) -> None:
    for size in SIZES:
        geometry = check(matrix(*size, kind, width=width)).geometry
        if size[0] > 16 and size[1] > KINDS[kind][0][0]:
            assert (geometry.group, geometry.levels) == KINDS[kind][1]


@pytest.mark.parametrize("kind", KINDS)
def test_no_outliers_and_a_row_full_of_them(kind: str) -> None:
    none = matrix(40, 1100, kind, outliers=0)
    assert not check(none).records.any()
    check(with_full_row(none, 17))
    check(with_full_row(matrix(40, 1100, kind), 39))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_plane_has_a_place_for_every_bit(bits: int) -> None:
    used = {(s.word, s.bit + k) for s in slots(bits) for k in range(bits)}
    pairs = {(s.rho, s.n) for s in slots(bits)}
    if bits == 3:
        used |= {(k, 15) for k in range(3)}
        pairs |= {SPREAD}
    assert used == {(w, b) for w in range(bits) for b in range(16)}
    assert pairs == {(rho, n) for rho in range(2) for n in range(8)}


def test_groups_that_no_lane_can_own_are_refused() -> None:
    assert geometry_of(64, 300, 4, 24, 16, 3) is None
    with pytest.raises(ValueError, match="24 columns"):
        pack(grid_matrix(16, 300, group=24, ordered=False))


@pytest.mark.parametrize(
    ("bits", "group", "expected"), [(4, 32, 4.375), (3, 16, 3.75), (4, 16, 4.75), (2, 16, 2.75)]
)
def test_bits_per_weight(bits: int, group: int, expected: float) -> None:
    geometry = Geometry(4096, 4096, bits, group, 2)
    assert 8 * geometry.stage_total / (4096 * 4096) == expected


def test_the_bars_bits_with_half_a_percent_of_outliers() -> None:
    for width, kind, most in ((4, "g32 two levels", 4.75), (3, "g16 two levels", 4.0)):
        packed = check(matrix(64, 4096, kind, width=width, outliers=64 * 4096 // 200))
        assert packed.geometry.bits_per_weight(packed.records.size) < most
