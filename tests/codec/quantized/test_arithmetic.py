"""Each number is rounded once: against fractions, in NumPy, in torch, and in torch on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from exact import bfloat16, binary16, fraction
from tersor.codec.quantized import arithmetic, arithmetic_torch
from tersor.codec.quantized.rounding import round_bf16

F32 = np.float32


def by_numpy(name: str, *numbers: np.ndarray) -> list[np.ndarray]:
    found = getattr(arithmetic, name)(*numbers)
    return [np.asarray(x, F32) for x in (found if isinstance(found, tuple) else (found,))]


def by_numba(name: str, *numbers: np.ndarray) -> list[np.ndarray]:
    fast = pytest.importorskip("tersor.codec.quantized.fast")
    if name != "base":
        return by_numpy(name, *numbers)  # it has the inner loop only
    return [fast.bases(*(x[None] for x in numbers), 1)[0]]


def by_torch(device: str) -> Callable[..., list[np.ndarray]]:
    def call(name: str, *numbers: np.ndarray) -> list[np.ndarray]:
        tensors = (torch.from_numpy(x.astype(F32)).to(device) for x in numbers)
        found = getattr(arithmetic_torch, name)(*tensors)
        return [x.cpu().numpy() for x in (found if isinstance(found, tuple) else (found,))]

    return call


EVERYWHERE = pytest.mark.parametrize(
    "call",
    [by_numpy, by_numba, by_torch("cpu"), pytest.param(by_torch("cuda"), marks=pytest.mark.gpu)],
    ids=["numpy", "numba", "torch", "cuda"],
)


def binary16s(rng: np.random.Generator, n: int) -> np.ndarray:
    """Finite ones of every exponent, subnormal too, of both signs, ends of the range among them."""
    bits = rng.integers(0, 0x7C00, n).astype(np.uint16) | (rng.integers(0, 2, n) << 15).astype(np.uint16)
    bits[:6] = 0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400
    return bits.view(np.float16)


def assert_bits(found: np.ndarray, wanted: list[Any]) -> None:
    np.testing.assert_array_equal(
        found.view(np.uint32), np.array([float(x) for x in wanted], F32).view(np.uint32)
    )


@EVERYWHERE
def test_statistics_of_any_size(call: Callable[..., list[np.ndarray]]) -> None:
    rng = np.random.default_rng(0)
    n = 20000
    minimum, step = binary16s(rng, n), binary16s(rng, n)[::-1].copy()
    code = rng.integers(0, 256, n).astype(np.uint8)
    exact = [fraction(m) + fraction(s) * int(c) for m, s, c in zip(minimum, step, code, strict=True)]
    fits = np.array([abs(x) < 65520 and x != 0 for x in exact])  # zeros have signs, which come below
    (found,) = call("statistic", minimum[fits], step[fits], code[fits])
    assert fits.sum() > n // 3
    assert_bits(found, [binary16(x) for x, fit in zip(exact, fits, strict=True) if fit])


def ties(digits: int, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a step and a code whose product lies in the middle of two numbers of so many bits."""
    steps, codes = np.meshgrid(step, np.arange(1, 256))
    product = (steps * codes).ravel()
    spare = np.floor(np.log2(product)).astype(np.int64) + 1 - digits
    middle = (spare > 0) & (product % (1 << spare.clip(0)) == (1 << spare.clip(1) - 1))
    return steps.ravel()[middle].astype(F32), codes.ravel()[middle].astype(np.uint8)


@EVERYWHERE
def test_statistics_at_and_beside_ties(call: Callable[..., list[np.ndarray]]) -> None:
    """Steps times codes in the middle of two binary16 numbers, alone and pushed off it by the least and by more."""
    step, code = ties(11, np.arange(1024, 2048, 17))
    step = step / 16
    for push in (0, 2.0**-24, -(2.0**-24), 2.0**-14, -(2.0**-3)):
        minimum = np.full(len(step), push, np.float16)
        wanted = [binary16(fraction(push) + fraction(s) * int(c)) for s, c in zip(step, code, strict=True)]
        found = call("statistic", minimum, step.astype(np.float16), code)[0]
        assert_bits(found, wanted)
        if abs(push) == 2.0**-24:
            twice = (minimum.astype(F32) + step * code.astype(F32)).astype(np.float16)
            assert (twice != found).sum() > 100  # rounding twice is another thing


@EVERYWHERE
def test_grids(call: Callable[..., list[np.ndarray]]) -> None:
    rng = np.random.default_rng(1)
    scale, zero = np.abs(binary16s(rng, 20000)), binary16s(rng, 20000)[::-1].copy()
    a, b = call("grid", scale, zero)
    wanted = [bfloat16(fraction(s)) for s in scale]
    assert_bits(a, wanted)
    product = [bfloat16(-f * fraction(z)) for f, z in zip(wanted, zero, strict=True)]
    np.testing.assert_array_equal(b, np.array([float(x) for x in product], F32))


@EVERYWHERE
def test_bases_of_any_size(call: Callable[..., list[np.ndarray]]) -> None:
    """Factors and offsets of all grids that can be, from 2^-48 to 2^32, in every ratio."""
    rng = np.random.default_rng(2)
    n = 20000
    a = round_bf16((rng.uniform(1, 2, n) * 2.0 ** rng.integers(-24, 16, n)).astype(F32))
    b = round_bf16((rng.uniform(-2, 2, n) * 2.0 ** rng.integers(-48, 32, n)).astype(F32))
    code = rng.integers(0, 256, n).astype(np.uint8)
    wanted = [bfloat16(fraction(x) * int(c) + fraction(y)) for x, y, c in zip(a, b, code, strict=True)]
    assert_bits(call("base", a, b, code)[0], wanted)


@EVERYWHERE
def test_bases_at_and_beside_ties(call: Callable[..., list[np.ndarray]]) -> None:
    """Every a * code in the middle of two bfloat16 numbers, alone and pushed off it by the least and by more."""
    a, code = ties(8, np.arange(128, 256))
    for push in (0.0, 2.0**-48, -(2.0**-48), 2.0**-12, -(2.0**-9), 0.25):
        b = np.full(len(a), push, F32)
        wanted = [bfloat16(fraction(push) + fraction(x) * int(c)) for x, c in zip(a, code, strict=True)]
        found = call("base", a, b, code)[0]
        assert_bits(found, wanted)
        if abs(push) == 2.0**-48:
            assert (round_bf16(a * code.astype(F32) + b) != found).sum() > 100


@EVERYWHERE
def test_zeros_have_the_sign_of_a_fused_multiply_add(call: Callable[..., list[np.ndarray]]) -> None:
    a, b = call("grid", np.array([0, 0, 1, 1], np.float16), np.array([3, -3, 0, 2], np.float16))
    np.testing.assert_array_equal(np.signbit(b), [True, False, True, True])
    found = call("base", a, b, np.array([0, 7, 0, 2], np.uint8))[0]
    assert_bits(found, [0.0] * 4)
    np.testing.assert_array_equal(np.signbit(found), [False] * 4)


@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 1, 1), (3, 70, 16), (700, 1000, 7), (5, 33, 33)])
def test_whole_matrices_are_worked_in_pieces(rows: int, columns: int, group: int) -> None:
    fast = pytest.importorskip("tersor.codec.quantized.fast")
    rng = np.random.default_rng(rows)
    a, b = round_bf16(rng.normal(0, 1, (2, rows, -(-columns // group))).astype(F32))
    codes = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    np.testing.assert_array_equal(fast.bases(a, b, codes, group), arithmetic.bases(a, b, codes, group))
