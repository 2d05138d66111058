"""Rows cut out of a quantised matrix: the same weights, and a matrix that can be stored."""

from __future__ import annotations

import numpy as np
import pytest

from matrices import grid_matrix, integer_matrix
from tersor.codec.quantized.dequantize import dequantize
from tersor.codec.quantized.parts import Matrix, entry_of, proven_matrix, to_parts
from tersor.codec.quantized.rows import cut_rows

MATRICES: dict[str, Matrix] = {
    "spqr": grid_matrix(48, outliers=500),
    "direct statistics": grid_matrix(48, stat_bits=0, run=1, outliers=0),
    "integers": integer_matrix(48),
}


@pytest.mark.parametrize("q", MATRICES.values(), ids=MATRICES.keys())
@pytest.mark.parametrize(("first", "stop"), [(0, 16), (16, 48), (32, 41), (0, 48)])
def test_the_same_weights(q: Matrix, first: int, stop: int) -> None:
    cut = cut_rows(q, first, stop)
    parts = to_parts(cut)
    found = proven_matrix(entry_of(cut, parts), parts)
    np.testing.assert_array_equal(dequantize(found), dequantize(q)[first:stop])


def test_a_cut_inside_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="inside a grid of 16 rows"):
        cut_rows(grid_matrix(48), 8, 16)
