"""What the launcher refuses before the driver sees it."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tersor.format.errors import KernelError
from tersor.kernels import launcher
from tersor.kernels.launcher import TensorMap, _type, _values, tensor_map


def test_tensors_elsewhere_are_refused() -> None:
    """An address of another device would end the process's CUDA context."""
    with pytest.raises(KernelError, match="decode runs on cuda:0, but was given a tensor on cpu"):
        _values((torch.zeros(3), 1), 0, "decode")


def test_numbers_and_nothing_are_passed_on() -> None:
    shape = TensorMap()
    arguments = (None, 3, 0.5, ctypes.c_void_p(1 << 40), shape)
    assert _values(arguments, 0, "decode") == (0, 3, 0.5, 1 << 40, shape)
    types = tuple(map(_type, arguments))
    assert types == (ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_void_p, None)
    assert _type(torch.zeros(3)) is ctypes.c_void_p  # as of no tensor: a bias may come and go


def test_a_matrix_is_described_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[tuple[int, ...]] = []

    def describe(*sizes: int) -> TensorMap:
        described.append(sizes)
        return TensorMap()

    monkeypatch.setattr(launcher, "_tensor_map", describe)
    x = torch.zeros(40, 72, dtype=torch.bfloat16)
    tensor_map(x[3:, 8:], 32, 64)
    assert described.pop() == (x.data_ptr() + 2 * (3 * 72 + 8), 37, 64, 144, 32, 64)
    tensor_map(x.as_strided((1, 60), (1, 1)), 32, 64)  # of one row the stride may be anything
    assert described.pop() == (x.data_ptr(), 1, 60, 128, 32, 64)
