"""How the layouts' decoding kernel is launched, as far as that can be known without a GPU."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from tersor.kernels.fused.device import elbow_room
from tersor.kernels.fused.layout import SEGMENT_COLS, STRIP_ROWS

DECLARED = STRIP_ROWS * (SEGMENT_COLS * 2 + 16)


@pytest.mark.parametrize(("kib", "blocks"), [(99, None), (163, 6), (227, 6), (1000, None)])
def test_elbow_room(kib: int, blocks: int | None) -> None:
    """Six blocks to a multiprocessor where that leaves each more than it declares; nothing that must be asked for."""
    room = elbow_room(kib << 10)
    assert room % 128 == 0 and 0 <= room <= (48 << 10) - DECLARED
    if blocks:
        each = DECLARED + room + 1024
        assert room and ((kib + 1) << 10) // each == blocks
    else:
        assert room == (0 if kib < 227 else (48 << 10) - DECLARED)


def test_what_the_kernel_declares() -> None:
    """The one array in it, of TILE_ROWS * PITCH bytes."""
    source = (files("tersor.kernels") / "cuda" / "decode.cu").read_text()
    assert re.findall(r"__shared__.*?(\w+)\[(.*?)\]", source) == [("decoded", "TILE_ROWS * PITCH")]
    assert "PITCH = SEGMENT_COLS * 2 + 16;" in source
