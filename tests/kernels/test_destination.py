"""What decodes into a given tensor refuses one that a kernel would write wrongly, or beyond, on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersor.format.errors import UsageError
from tersor.kernels import ops  # noqa: F401  (defines the operators)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ROWS, COLS = 40, 600


def wrong(device: str) -> dict[str, torch.Tensor]:
    plain: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    return {
        "not contiguous": torch.zeros(COLS, ROWS, **plain).t(),
        "torch.float16": torch.zeros(ROWS, COLS, dtype=torch.float16, device=device),
        "(80, 600)": torch.zeros(2 * ROWS, COLS, **plain),
        "(40, 1200)": torch.zeros(ROWS, 2 * COLS, **plain),
        "(24000,)": torch.zeros(ROWS * COLS, **plain),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", ["huffman", "window"])
def test_what_is_refused(operator: str, device: str) -> None:
    weight = torch.randn(ROWS, COLS).bfloat16()
    pack = torch.ops.tersor.huffman_encode if operator == "huffman" else torch.ops.tersor.window_pack
    parts = [part.to(device) for part in pack(weight)]

    def decode(out: torch.Tensor) -> None:
        if operator == "huffman":
            torch.ops.tersor.huffman_decode_to(*([part] for part in parts), "BF16", [out])
        else:
            torch.ops.tersor.window_decode_to(*parts, out)

    for why, out in wrong(device).items():
        with pytest.raises(UsageError) as caught:
            decode(out)
        assert why in str(caught.value) and f"{operator}_decode_to" in str(caught.value)
        assert not out.any()
    right = torch.zeros(ROWS, COLS, dtype=torch.bfloat16, device=device)
    decode(right)
    assert torch.equal(right.cpu(), weight)
