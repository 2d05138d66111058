"""Entropy-coded integers: the fast quantiser against the plain one, the rate, the loss, the extremes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tersor import codec
from tersor.codec.quantized import dequantize_torch
from tersor.codec.quantized.dequantize import dequantize
from tersor.codec.quantized.integers import Integers
from tersor.format.errors import UsageError
from tersor.quantize import integers, integers_torch, reference, spqr
from tersor.quantize.integers import IntegerSettings, entropy
from tersor.quantize.settings import preset
from tersor.quantize.store import Store


def layer(
    rows: int = 96, columns: int = 160, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * rng.lognormal(0, 1, columns)
    x = (rng.standard_normal((4 * columns, columns)) @ mix).astype(np.float32)
    return torch.from_numpy(0.02 * rng.standard_t(4, (rows, columns))).to(dtype), reference.hessian(x)


def both(
    weight: torch.Tensor, h: npt.NDArray[np.float64], settings: IntegerSettings
) -> tuple[Integers, Integers]:
    fast = integers_torch.quantize(weight, torch.from_numpy(h), settings, torch.float64)
    return fast, integers.reference(weight.float().numpy(), h, settings, fast.dtype)


def assert_equal(a: Integers, b: Integers) -> None:
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.steps, b.steps)
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(dequantize_torch.dequantize(a).float().numpy(), dequantize(b))


def loss(weight: torch.Tensor, h: npt.NDArray[np.float64], served: npt.NDArray[np.float32]) -> float:
    w = weight.double().numpy()
    e = served - w
    return float(np.trace(e @ h @ e.T) / np.trace(w @ h @ w.T))


@pytest.mark.parametrize("bits", [1.0, 2.5, 4.0, 6.0])
@pytest.mark.parametrize("act_order", [True, False])
def test_the_fast_quantiser_equals_the_plain_one(bits: float, act_order: bool) -> None:
    assert_equal(*both(*layer(), IntegerSettings(bits, act_order=act_order)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 64), (33, 300), (7, 129)])
def test_other_types_and_shapes_equal_the_plain_one(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    assert_equal(*both(*layer(*shape, dtype=dtype), IntegerSettings(3.0)))


@pytest.mark.parametrize("bits", [2.0, 3.3, 4.0, 5.5])
def test_the_rate_is_the_one_asked_for(bits: float) -> None:
    weight, h = layer(256, 512)
    q = integers_torch.quantize(weight, torch.from_numpy(h), IntegerSettings(bits))
    assert entropy(q.codes) == pytest.approx(bits, abs=0.05)


def test_the_bits_are_those_of_the_lossless_codec() -> None:
    weight, h = layer(256, 512)
    q = integers_torch.quantize(weight, torch.from_numpy(h), IntegerSettings(4.0))
    packed = codec.encode(q.codes.reshape(-1).view(np.uint8), "F8_E4M3", q.shape)
    assert q.bits().codes == 8 * packed.nbytes
    assert q.bits().statistics == 16 * 512
    assert entropy(q.codes) < q.bits().per_weight < entropy(q.codes) + 0.25
    back = codec.decode(packed).view(np.int8).reshape(q.shape)
    np.testing.assert_array_equal(back, q.codes)


def test_it_beats_grids_at_fewer_bits() -> None:
    weight, h = layer(256, 512)
    grid = spqr.quantize(weight, torch.from_numpy(h), preset("4-bit"))
    q = integers_torch.quantize(weight, torch.from_numpy(h), IntegerSettings(4.3))
    assert q.bits().per_weight < grid.bits().per_weight
    assert loss(weight, h, dequantize(q)) < loss(weight, h, dequantize(grid))


def test_no_code_leaves_its_byte() -> None:
    weight, h = layer()
    weight[3, 5] = 40.0  # an outlier two thousand times the rest
    fast, slow = both(weight, h, IntegerSettings(5.0))
    assert_equal(fast, slow)
    assert np.abs(slow.codes.astype(int)).max() <= 127
    assert dequantize(slow)[3, 5] == pytest.approx(40.0, rel=0.01)


def test_dead_inputs_and_zeros_are_kept() -> None:
    weight, h = layer()
    h[[3, 50], :] = h[:, [3, 50]] = 0
    weight[:, 7] = 0
    weight[9] = 0
    fast, slow = both(weight, h, IntegerSettings(4.0))
    assert_equal(fast, slow)
    served = dequantize(slow)
    assert np.corrcoef(served[:, [3, 50]].ravel(), weight[:, [3, 50]].float().numpy().ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(served[9], 0)
    assert_equal(*both(torch.zeros(8, 64), np.eye(64), IntegerSettings(4.0)))


def test_a_hessian_of_nothing_is_plain_rounding() -> None:
    weight, h = layer()
    fast, slow = both(weight, np.zeros_like(h), IntegerSettings(4.0))
    assert_equal(fast, slow)
    assert loss(weight, np.eye(len(h)), dequantize(slow)) < 0.01


def test_the_store_keeps_integers(tmp_path: Path) -> None:
    q, _ = both(*layer(), IntegerSettings(4.0))
    store = Store(tmp_path, "job")
    store.put("w", q)
    found = store.get("w")
    assert isinstance(found, Integers)
    assert_equal(found, q)


@pytest.mark.parametrize("bits", [0.5, 7.0])
def test_rates_a_byte_cannot_hold_are_refused(bits: float) -> None:
    with pytest.raises(UsageError, match=r"1 to 6\.5"):
        IntegerSettings(bits)
