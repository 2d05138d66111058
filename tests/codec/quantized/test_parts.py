"""The stored arrays: there and back, as declared, every rule by name, every flipped bit found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from matrices import VARIANTS, grid_matrix, integer_matrix
from tersor.codec.quantized.dequantize import dequantize, weight_bytes
from tersor.codec.quantized.parts import (
    Matrix,
    Parts,
    entry_of,
    from_parts,
    parts_sha256,
    proven_matrix,
    to_parts,
)
from tersor.format.errors import (
    BadOrder,
    BadOutliers,
    BadStats,
    BadSteps,
    FormatError,
    HashMismatch,
    NotCanonical,
)
from tersor.format.layout import stored_tensors
from tersor.format.manifest import TensorEntry, dump_manifest, parse_manifest

MATRICES: dict[str, Matrix] = {name: grid_matrix(**options) for name, options in VARIANTS.items()}
MATRICES |= {f"integers {dtype}": integer_matrix(dtype=dtype) for dtype in ("BF16", "F16", "F32")}
MATRICES["narrow integers"] = integer_matrix(70, 5)
EVERY = pytest.mark.parametrize("q", MATRICES.values(), ids=MATRICES.keys())
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32}


@EVERY
def test_there_and_back(q: Matrix) -> None:
    parts = to_parts(q)
    entry = entry_of(q, parts)
    again = proven_matrix(entry, parts)
    assert type(again) is type(q)
    for name, value in vars(q).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(again, name), value, name)
        else:
            assert getattr(again, name) == value, name
    digest = hashlib.sha256(b"".join(piece.tobytes() for piece in weight_bytes(q)))
    assert digest.hexdigest() == entry.sha256


@EVERY
def test_the_arrays_are_those_declared_and_the_bits_are_theirs(q: Matrix) -> None:
    parts = to_parts(q)
    entry = entry_of(q, parts)
    declared = [part for part in stored_tensors("w", entry) if not part.optional]
    assert [part.name for part in declared] == ["w" + name for name in parts]
    for part, array in zip(declared, parts.values(), strict=True):
        assert array.dtype == _DTYPES[part.dtype]
        assert all(want in (None, have) for want, have in zip(part.shape, array.shape, strict=True))
    assert q.bits().total == 8 * sum(array.nbytes for array in parts.values())
    assert parse_manifest({"tersor": dump_manifest({"w": entry})}) == {"w": entry}


@EVERY
def test_every_flipped_bit_is_found(q: Matrix) -> None:
    """Of the larger arrays a sample; also where the weights stay the same."""
    parts = to_parts(q)
    entry = entry_of(q, parts)
    rng = np.random.default_rng(0)
    for name, array in parts.items():
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for bit in rng.choice(8 * raw.size, min(40, 8 * raw.size), replace=False):
            damaged = raw.copy()
            damaged[bit // 8] ^= 1 << bit % 8
            flipped = {**parts, name: damaged.view(array.dtype).reshape(array.shape)}
            with pytest.raises(HashMismatch, match="damaged"):
                proven_matrix(entry, flipped)


def resealed(entry: TensorEntry, parts: Parts) -> TensorEntry:
    """The entry a careless or malicious writer would write for damaged arrays."""
    assert entry.parameters is not None
    return replace(entry, parameters=replace(entry.parameters, stored=parts_sha256(parts)))


def set_at(index: Any, value: int) -> Callable[[np.ndarray], None]:
    def edit(array: np.ndarray) -> None:
        array[index] = value

    return edit


def swap_first(array: np.ndarray) -> None:
    array[:2] = array[1::-1].copy()


RULES: dict[str, tuple[Matrix, str, Callable[[np.ndarray], None], type[Exception]]] = {
    "a column twice": (grid_matrix(), "_order", lambda a: set_at(0, int(a[1]))(a), BadOrder),
    "a column beyond": (grid_matrix(), "_order", set_at(0, 300), BadOrder),
    "an outlier too many": (grid_matrix(), "_counts", lambda a: set_at(0, int(a[0]) + 1)(a), BadOutliers),
    "a place beyond the tile": (grid_matrix(), "_places", set_at(-1, 4096), BadOutliers),
    "a row beyond the matrix": (grid_matrix(), "_places", set_at(-1, 4095), BadOutliers),
    "outliers out of order": (grid_matrix(), "_places", swap_first, BadOutliers),
    "an outlier twice": (grid_matrix(), "_places", lambda a: set_at(1, int(a[0]))(a), BadOutliers),
    "an infinite outlier": (grid_matrix(), "_deltas", set_at(3, 0xFC00), BadOutliers),
    "a scale's step that is no number": (grid_matrix(), "_stats", set_at((1, 2, 0), 0x7E01), BadStats),
    "an infinite zero": (grid_matrix(), "_stats", set_at((1, 2, 3), 0xFC00), BadStats),
    "zeros that grow beyond the largest": (grid_matrix(), "_stats", set_at((0, 0, 2), 0xF0A1), BadStats),
    "a direct scale beyond all": (
        grid_matrix(stat_bits=0, run=1),
        "_stats",
        set_at((0, 0, 0), 0x7C00),
        BadStats,
    ),
    "a step of zero": (integer_matrix(), "_steps", set_at(3, 0), BadSteps),
    "a negative step": (integer_matrix(), "_steps", set_at(3, 0xBF80), BadSteps),
    "an infinite step": (integer_matrix(), "_steps", set_at(3, 0x7F80), BadSteps),
    "a step that is no number": (integer_matrix(), "_steps", set_at(3, 0x7FC0), BadSteps),
    "spare bits of codes": (grid_matrix(3, 9, 4, outliers=2), "_codes", set_at((0, -1), 1), NotCanonical),
    "spare bits of levels": (grid_matrix(3, 9, 4, outliers=2), "_levels", set_at((0, -1), 128), NotCanonical),
    "spare bytes of tiles": (integer_matrix(), "_tiles", set_at(-1, 1), NotCanonical),
}


@pytest.mark.parametrize(("q", "name", "edit", "error"), RULES.values(), ids=RULES.keys())
def test_a_broken_rule_is_named_though_the_hash_fits(
    q: Matrix, name: str, edit: Callable[[np.ndarray], None], error: type[Exception]
) -> None:
    parts = to_parts(q)
    entry = entry_of(q, parts)
    parts[name] = parts[name].copy()
    edit(parts[name])
    with pytest.raises(error, match=r"file: tensor 'w'.*damaged"):
        proven_matrix(resealed(entry, parts), parts, "file: tensor 'w'")
    if issubclass(error, FormatError):  # also without proof
        with pytest.raises(error):
            from_parts(entry, parts)


def test_an_outlier_far_down_keeps_its_place() -> None:
    q = grid_matrix(100, 600, outliers=500)
    plain = replace(q, outlier_index=q.outlier_index[:0], outlier_value=q.outlier_value[:0], order=None)
    moved = dequantize(replace(q, order=None)) != dequantize(plain)
    assert set(np.flatnonzero(moved)) <= set(q.outlier_index)
    assert moved.sum() > 400
