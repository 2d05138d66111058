"""Modules with quantised parameters: their own forward on the weights that the reference gives."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from matrices import grid_matrix, integer_matrix
from tersor.codec.quantized.dequantize import weight_bytes
from tersor.codec.quantized.parts import Matrix, entry_of, to_parts
from tersor.nn import CompressedEmbedding, CompressedLinear, compress, restore

MATRICES: dict[str, Matrix] = {
    "spqr": grid_matrix(),
    "spqr, nothing optional": grid_matrix(stat_bits=0, run=1, outliers=0, ordered=False),
    "spqr F32": grid_matrix(dtype="F32"),
    "integers": integer_matrix(),
}
TORCH = {"BF16": torch.bfloat16, "F32": torch.float32}
EVERY = pytest.mark.parametrize("q", MATRICES.values(), ids=MATRICES.keys())


def weight(q: Matrix) -> torch.Tensor:
    stored = np.concatenate(list(weight_bytes(q)))
    return torch.from_numpy(stored).view(TORCH[q.dtype]).reshape(q.shape)


def put(module: nn.Module, q: Matrix) -> nn.Module:
    """`module` with this matrix as its weight, compressed."""
    parts = to_parts(q)
    entry = entry_of(q, parts)
    tensors = {"weight" + name: torch.from_numpy(np.ascontiguousarray(p)) for name, p in parts.items()}
    compress(module, "weight", entry, tensors)
    return module


def linear(q: Matrix) -> nn.Module:
    rows, columns = q.shape
    return put(nn.Linear(columns, rows, bias=False, dtype=TORCH[q.dtype]), q)


def inputs(q: Matrix) -> torch.Tensor:
    return torch.randn(3, q.shape[1], generator=torch.Generator().manual_seed(0)).to(TORCH[q.dtype])


@EVERY
def test_a_linear_layer(q: Matrix) -> None:
    module, x = linear(q), inputs(q)
    assert isinstance(module, CompressedLinear)
    assert torch.equal(module(x), F.linear(x, weight(q)))
    assert all(not p.is_floating_point() for p in module.parameters())


@EVERY
def test_an_embedding(q: Matrix) -> None:
    rows, columns = q.shape
    module = put(nn.Embedding(rows, columns, dtype=TORCH[q.dtype]), q)
    assert isinstance(module, CompressedEmbedding)
    ids = torch.tensor([[3, 0, 39], [7, 7, 1]])
    assert torch.equal(module(ids), weight(q)[ids])


@EVERY
def test_reading_copying_casting_and_restoring(q: Matrix) -> None:
    module, x = linear(q), inputs(q)
    assert torch.equal(module.weight + 0, weight(q))
    assert torch.equal(module.weight[5], weight(q)[5])
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(module), torch.load(saved, weights_only=False)):
        assert torch.equal(twin(x), module(x))
    wide = copy.deepcopy(module).to(torch.float64)
    assert torch.equal(wide.weight + 0, weight(q).double())
    plain = copy.deepcopy(module)
    assert isinstance(plain, CompressedLinear)
    restore(plain)
    assert type(plain) is nn.Linear
    assert torch.equal(plain.weight, weight(q))


@pytest.mark.parametrize("name", ["spqr", "integers"])
def test_a_state_dict_is_loaded_again(name: str) -> None:
    q = MATRICES[name]
    module, other = linear(q), linear(q)
    state = module.state_dict()
    assert "weight" not in state
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(state)
    assert torch.equal(other.weight + 0, weight(q))


def test_it_compiles_whole() -> None:
    q = MATRICES["spqr F32"]
    module, x = linear(q), inputs(q)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
