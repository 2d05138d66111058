"""The index of a compressed tensor: offsets of 32 bits, and what they cannot count."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.codec.packed import check_reach, tile_offsets
from tersor.format.errors import UsageError


def test_offsets_begin_at_0_and_are_running_sums() -> None:
    found = tile_offsets(np.array([3, 1, 2], np.uint32), (48, 16))
    assert found.dtype == np.uint32
    assert found.tolist() == [0, 3, 4, 6]


def test_up_to_64_gib_and_no_further() -> None:
    """The largest offset is 2^32 - 1; one unit more would wrap to 0."""
    half = np.uint32(1 << 31)
    assert tile_offsets(np.array([half, half - 1], np.uint32), (32, 256))[-1] == (1 << 32) - 1
    with pytest.raises(
        UsageError, match=r"\[32, 256\] takes 68,719,476,736 bytes of tiles.* split the tensor"
    ):
        tile_offsets(np.array([half, half], np.uint32), (32, 256))
    check_reach((1 << 32) - 1, (1,))
    with pytest.raises(UsageError, match="offsets of 32 bits"):
        check_reach(1 << 32, (1,))
