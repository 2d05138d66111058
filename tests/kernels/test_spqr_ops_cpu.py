"""The operators of the `spqr` layout on the CPU, and their shapes under fake tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from spqr_cases import KINDS, SIZES, matrix, stored, with_full_row
from tersor.codec.quantized.dequantize import dequantize
from tersor.codec.quantized.matrix import Quantized
from tersor.format.errors import KernelError
from tersor.kernels.spqr import (
    ops,  # noqa: F401  (defines the operators)
    packing,
    reference,
)
from tersor.kernels.spqr.layout import Geometry
from tersor.kernels.spqr.linear import MAX_TOKENS, variant_for


def weight_of(q: Quantized) -> torch.Tensor:
    return torch.from_numpy(dequantize(q)).bfloat16().contiguous()


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_numpys(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CHUNK_WEIGHTS", 40_000)  # several pieces
    for size in SIZES:
        q = matrix(*size, kind, width=width)
        none = matrix(*size, kind, width=width, outliers=0)
        for case in (q, none, with_full_row(q, size[0] // 2)):
            expected = reference.pack(case)
            ours = torch.ops.tersor.spqr_pack(*stored(case).pack)
            stages, places, records = (part.numpy() for part in ours)
            assert np.array_equal(stages, expected.stages)
            assert np.array_equal(places, expected.places)
            assert np.array_equal(records, expected.records)


def test_without_outliers_records_are_empty() -> None:
    q = matrix(33, 600, outliers=0)
    stages, places, records = torch.ops.tersor.spqr_pack(*stored(q).pack)
    assert not records.any()
    decoded = torch.ops.tersor.spqr_decode(stages, places, records, None, *stored(q).held)
    assert torch.equal(decoded, weight_of(q))


@pytest.mark.parametrize("ordered", [False, True])
def test_decode_and_linear_are_the_dequantised_weights(ordered: bool) -> None:
    q = matrix(24, 200, ordered=ordered, unit=2.0**-9)
    case = stored(q)
    packed = torch.ops.tersor.spqr_pack(*case.pack)
    decoded = torch.ops.tersor.spqr_decode(*packed, case.order, *case.held)
    assert torch.equal(decoded, weight_of(q))
    x, bias = torch.randn(2, 3, 200).bfloat16(), torch.randn(24).bfloat16()
    y = torch.ops.tersor.spqr_linear(x, *packed, case.order, bias, *case.held)
    assert torch.equal(y, linear(x, weight_of(q), bias))
    y = torch.ops.tersor.spqr_linear(x.float(), *packed, case.order, None, *case.held)
    assert torch.equal(y, linear(x.float(), weight_of(q).float()))


def test_what_does_not_fit_is_refused_by_name() -> None:
    q = matrix(24, 200, "g16 two levels")
    arguments = list(stored(q).pack)
    arguments[8] = 24
    with pytest.raises(KernelError, match="groups of 24"):
        torch.ops.tersor.spqr_pack(*arguments)


def test_schemas_and_fakes() -> None:
    q = matrix(40, 300, ordered=True)
    case = stored(q)
    tests = ("test_schema", "test_faketensor")
    packed = torch.ops.tersor.spqr_pack(*case.pack)
    torch.library.opcheck(torch.ops.tersor.spqr_pack.default, case.pack, test_utils=tests)
    decode = (*packed, case.order, *case.held)
    torch.library.opcheck(torch.ops.tersor.spqr_decode.default, decode, test_utils=tests)
    product = (torch.randn(3, 300).bfloat16(), *packed, case.order, None, *case.held)
    torch.library.opcheck(torch.ops.tersor.spqr_linear.default, product, test_utils=tests)


def test_linear_compiles_without_a_graph_break() -> None:
    q = matrix(24, 200)
    case = stored(q)
    packed = torch.ops.tersor.spqr_pack(*case.pack)
    compiled = torch.compile(
        lambda x: torch.ops.tersor.spqr_linear(x, *packed, None, None, *case.held),
        fullgraph=True,
        backend="aot_eager",
    )
    x = torch.randn(3, 200).bfloat16()
    assert torch.equal(compiled(x), linear(x, weight_of(q)))


@pytest.mark.parametrize("gpu", [(132, 232448), (108, 166912), (128, 101376)], ids=["h200", "a100", "small"])
@pytest.mark.parametrize("kind", [(2, 32, 2), (4, 32, 2), (3, 16, 2), (8, 16, 1), (8, 128, 1)], ids=str)
def test_every_build_fits_its_gpu(gpu: tuple[int, int], kind: tuple[int, int, int]) -> None:
    multiprocessors, shared = gpu
    for rows in (16, 576, 4096, 6144, 14336, 57344):
        for cols in (64, 4096, 28672):
            geometry = Geometry(rows, cols, *kind)
            for tokens in range(1, MAX_TOKENS + 1):
                variant = variant_for(tokens, geometry, multiprocessors, shared)
                assert tokens <= variant.tokens < 2 * tokens
                assert variant.shared(geometry.stage_bytes) * variant.blocks_per_sm <= shared
                blocks, slices = variant.launch(geometry, multiprocessors).blocks
                assert 1 <= blocks <= geometry.strips
                assert slices == (-(-geometry.spans // variant.slice_spans) if variant.slice_spans else 1)
