"""What the launcher refuses before the driver sees it."""

from __future__ import annotations

import pytest
import torch

from tersor.format.errors import KernelError
from tersor.kernels.launcher import _pack


def test_tensors_elsewhere_are_refused() -> None:
    """An address of another device would end the process's CUDA context."""
    with pytest.raises(KernelError, match="decode runs on cuda:0, but was given a tensor on cpu"):
        _pack((torch.zeros(3), 1), 0, "decode")


def test_numbers_and_nothing_are_passed_on() -> None:
    values, types = _pack((None, 3, 0.5), 0, "decode")
    assert values == (0, 3, 0.5)
    assert len(types) == 3
