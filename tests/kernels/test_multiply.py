"""Which way a product takes, with the kernels replaced by their names: every border of both layouts."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import linear as plain

from tersor.kernels.fused import device as fused
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.variant import Variant
from tersor.kernels.spqr import device as spqr
from tersor.kernels.spqr import linear as spqr_choice
from tersor.kernels.spqr.layout import Geometry as Spqr
from tersor.kernels.tile import device as tile
from tersor.kernels.window import device as window
from tersor.kernels.window import linear as window_choice
from tersor.kernels.window.layout import Geometry as Window

ROWS, COLS = 32, 128
WEIGHT = torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0)).bfloat16()
EMPTY = torch.empty(0)
H200 = (132, 227 * 1024)

Took = Callable[[bool], list[str]]
LAYOUTS: dict[str, tuple[ModuleType, Any]] = {
    "fast": (window, Matrix(Window(ROWS, COLS), EMPTY, EMPTY, EMPTY)),
    "spqr": (spqr, Matrix(Spqr(ROWS, COLS, 4, 32, 2), EMPTY, EMPTY, EMPTY)),
}
EVERY = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> Took:
    """took(on_hopper): the list to which each product adds the way that it took."""
    ways: list[str] = []

    def few(
        x: torch.Tensor,
        matrix: Any,
        bias: Any,
        most: int,
        variant_for: Callable[..., Variant],
        wanted: Variant | None,
    ) -> torch.Tensor:
        build = wanted or variant_for(min(most, x.shape[0]), matrix.geometry, *H200)
        ways.append(f"fused, {most} at a time, built for {build.tokens}")
        return plain(x, WEIGHT, bias)

    def many(x: torch.Tensor, matrix: Any, bias: Any) -> torch.Tensor:
        ways.append("tile")
        return plain(x, WEIGHT, bias)

    def decode(matrix: Any) -> torch.Tensor:
        ways.append("decoded")
        return WEIGHT

    monkeypatch.setattr(fused, "linear", few)
    monkeypatch.setattr(fused, "decode", decode)
    monkeypatch.setattr(tile, "tile_linear", many)

    def on(hopper: bool) -> list[str]:
        monkeypatch.setattr(tile, "supported", lambda device: hopper)
        return ways

    return on


def way(
    ways: list[str], layout: str, *shape: int, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> str:
    """The way of one product, whose result is the plain one's whatever it was."""
    device, matrix = LAYOUTS[layout]
    x = torch.randn(*shape, COLS, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.ones(ROWS, dtype=dtype)
    ways.clear()
    y = device.multiply(x, matrix, bias, **options)
    torch.testing.assert_close(y, plain(x, WEIGHT.to(dtype), bias))
    (found,) = ways
    return found.partition(",")[0]


# layout, Hopper or not -> the largest number of tokens of each way
BORDERS: list[tuple[str, bool, dict[str, int | None]]] = [
    ("fast", False, {"fused": window_choice.FUSED_TOKENS, "decoded": None}),
    ("fast", True, {"fused": window_choice.TILE_TOKENS, "tile": window_choice.TILED_TOKENS, "decoded": None}),
    ("spqr", False, {"fused": spqr_choice.FUSED_TOKENS, "decoded": None}),
    ("spqr", True, {"fused": spqr_choice.MAX_TOKENS, "tile": spqr_choice.TILED_TOKENS, "decoded": None}),
]


@pytest.mark.parametrize(("layout", "hopper", "borders"), BORDERS)
def test_each_way_up_to_its_border(
    layout: str, hopper: bool, borders: dict[str, int | None], took: Took
) -> None:
    ways, first = took(hopper), 1
    for expected, last in borders.items():
        for tokens in {first, last or 5000}:
            assert way(ways, layout, tokens) == expected, tokens
            assert way(ways, layout, 1, tokens) == expected, tokens
        first = (last or 0) + 1


@EVERY
def test_nothing_else_is_fused(layout: str, took: Took) -> None:
    """No tokens, other arithmetic."""
    ways = took(True)
    assert way(ways, layout, 0) == "decoded"
    assert way(ways, layout, 3, dtype=torch.float32) == "decoded"
    assert way(ways, layout, 300, dtype=torch.float16) == "decoded"


@EVERY
def test_a_bias_of_another_kind_is_not_read_as_bfloat16(layout: str, took: Took) -> None:
    """The plain layer refuses it, so does this one; a strided one is taken."""
    ways, (device, matrix) = took(True), LAYOUTS[layout]
    x = torch.ones(3, COLS, dtype=torch.bfloat16)
    for bias in (torch.ones(ROWS), torch.ones(ROWS + 1, dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError):
            device.multiply(x, matrix, bias)
    strided = torch.ones(2 * ROWS, dtype=torch.bfloat16)[::2]
    ways.clear()
    torch.testing.assert_close(device.multiply(x, matrix, strided), plain(x, WEIGHT, strided))
    assert ways[0].startswith("fused")


def test_exactly_means_decoded(took: Took) -> None:
    assert way(took(True), "fast", 1, exact=True) == "decoded"
    assert way(took(True), "fast", 300, exact=True) == "decoded"


@EVERY
def test_a_build_that_is_given_is_used(layout: str, took: Took) -> None:
    """Also where `tile` would multiply; in turns of as many tokens as it takes."""
    ways, (device, matrix) = took(True), LAYOUTS[layout]
    build, x = Variant(4, 8, 2, 2), torch.zeros(100, COLS, dtype=torch.bfloat16)
    device.linear(x, matrix, None, build)
    assert ways == ["fused, 4 at a time, built for 4"]


@EVERY
def test_more_than_a_launch_takes_comes_in_turns(layout: str, took: Took) -> None:
    ways, (device, matrix) = took(False), LAYOUTS[layout]
    most = {"fast": window_choice.MAX_TOKENS, "spqr": spqr_choice.MAX_TOKENS}[layout]
    device.linear(torch.zeros(most + 1, COLS, dtype=torch.bfloat16), matrix)
    assert ways == [f"fused, {most} at a time, built for {most}"]
