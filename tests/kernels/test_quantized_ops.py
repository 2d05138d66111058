"""The operators for quantised tensors: the reference's bits from the stored arrays, fakes, the compiler."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from matrices import VARIANTS, grid_matrix, integer_matrix
from tersor.codec.quantized.dequantize import weight_sha256
from tersor.codec.quantized.parts import Matrix, entry_of, to_parts
from tersor.format.parameters import SpqrParameters
from tersor.kernels import quantized_ops  # noqa: F401  (defines the operators)

MATRICES: dict[str, Matrix] = {name: grid_matrix(**options) for name, options in VARIANTS.items()}
MATRICES |= {f"integers {dtype}": integer_matrix(dtype=dtype) for dtype in ("BF16", "F16", "F32")}
EVERY = pytest.mark.parametrize("q", MATRICES.values(), ids=MATRICES.keys())
SPQR = ("_codes", "_levels", "_stats", "_order", "_counts", "_places", "_deltas")
INTEGERS = ("_tiles", "_offsets", "_book", "_steps")


def call(q: Matrix, device: str = "cpu") -> tuple[Any, tuple[Any, ...]]:
    """The operator for this matrix, and its arguments."""
    parts = to_parts(q)
    p = entry_of(q, parts).parameters
    names = SPQR if isinstance(p, SpqrParameters) else INTEGERS
    arrays = [torch.from_numpy(parts[n].copy()).to(device) if n in parts else None for n in names]
    if isinstance(p, SpqrParameters):
        numbers = (p.bits, p.group, p.rows, p.stat_bits, p.unit)
        return torch.ops.tersor.spqr_dequantize.default, (*arrays, q.dtype, list(q.shape), *numbers)
    return torch.ops.tersor.integers_dequantize.default, (*arrays, q.dtype, list(q.shape))


def sha256(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@EVERY
def test_the_reference_bit_for_bit(q: Matrix) -> None:
    op, arguments = call(q)
    weight = op(*arguments)
    assert tuple(weight.shape) == q.shape
    assert weight.is_contiguous()
    assert sha256(weight) == weight_sha256(q)


@pytest.mark.gpu
@EVERY
def test_the_reference_bit_for_bit_on_a_gpu(q: Matrix) -> None:
    op, arguments = call(q, "cuda")
    assert sha256(op(*arguments)) == weight_sha256(q)


@pytest.mark.parametrize("name", ["4 bits", "direct statistics", "no outliers", "integers F16"])
def test_schema_fake_and_compiler_agree(name: str) -> None:
    op, arguments = call(MATRICES[name])
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_codes_of_another_size_are_an_error_not_a_crash() -> None:
    op, arguments = call(MATRICES["4 bits"])
    with pytest.raises((RuntimeError, IndexError)):
        op(arguments[0][:, :10].contiguous(), *arguments[1:])


def test_numpy_types_of_the_stored_arrays() -> None:
    assert {array.dtype for array in to_parts(MATRICES["4 bits"]).values()} == {
        np.dtype(np.uint8),
        np.dtype(np.uint16),
    }
