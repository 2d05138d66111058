"""How huffman_decode is built for GPUs of different sizes."""

from __future__ import annotations

import pytest

from tersor.format.constants import ALIGN, SYMBOLS
from tersor.format.dtypes import KINDS
from tersor.kernels.huffman.device import Decoding


@pytest.mark.parametrize("kilobytes", [99, 163, 227])
@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_decoding_fits_and_has_a_thread_per_symbol(kind: int, kilobytes: int) -> None:
    decoding = Decoding.fitting(kind, kilobytes * 1024)
    assert decoding.shared <= kilobytes * 1024
    assert 32 * decoding.warps >= SYMBOLS
    assert decoding.slot % ALIGN == 0
    assert decoding.slot >= 1500  # what the exponents of a tile take


def test_the_largest_build_is_the_measured_one() -> None:
    assert Decoding.fitting(KINDS["BF16"], 227 * 1024) == Decoding(KINDS["BF16"], 12, 2048)
