"""What the `spqr` layout gives back is what was stored, bit for bit."""

from __future__ import annotations

import pytest
import torch

from spqr_cases import KINDS, SIZES, matrix, stored, with_full_row
from tersor.codec.quantized.parts import to_parts
from tersor.kernels.spqr import (
    ops,  # noqa: F401  (defines the operators)
    unpacking,
)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_outliers_come_back(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_CHUNK_WEIGHTS", 40_000)  # several pieces
    for size in SIZES:
        q = matrix(*size, kind, width=width)
        for case in (q, with_full_row(q, size[0] // 2)):
            packing, parts = stored(case), to_parts(case)
            stages, places, records = torch.ops.tersor.spqr_pack(*packing.pack)
            codes = unpacking.stored_codes(stages, packing.geometry)
            assert torch.equal(codes, torch.from_numpy(parts["_codes"]))
            outliers = unpacking.stored_outliers(places, records, packing.geometry)
            for name, ours in zip(("_counts", "_places", "_deltas"), outliers, strict=True):
                if name in parts:
                    theirs = torch.from_numpy(parts[name].copy())
                    assert ours.dtype == theirs.dtype
                    assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))
