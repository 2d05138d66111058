"""What an operator asks of the tensor it writes to: a kernel writes to addresses, and would not notice."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.format.errors import UsageError


def check_destination(operator: str, out: Tensor, dtype: torch.dtype, fits: bool) -> None:
    """UsageError if `out` is not contiguous, not of `dtype`, or, by `fits`, not of the size that was stored."""
    if not out.is_contiguous() or out.dtype != dtype or not fits:
        layout = "contiguous" if out.is_contiguous() else "not contiguous"
        raise UsageError(
            f"{operator}: out is {out.dtype} {tuple(out.shape)}, {layout}; give a contiguous tensor of {dtype} "
            f"and of the shape whose stored arrays are given"
        )
