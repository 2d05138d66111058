"""The fast quantiser against the reference: equal in every stored number."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tersor.codec.quantized import dequantize, dequantize_torch
from tersor.codec.quantized.matrix import Quantized
from tersor.format.errors import UnknownDtype, UsageError
from tersor.quantize import reference, spqr
from tersor.quantize.settings import Settings, gptq, preset, rtn

F32 = npt.NDArray[np.float32]
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def layer(
    rows: int = 40, columns: int = 96, seed: int = 0, dtype: str = "BF16"
) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    """A heavy-tailed matrix and the Hessian of correlated inputs of very different size."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * rng.lognormal(0, 1, columns)
    inputs = (rng.standard_normal((4 * columns, columns)) @ mix).astype(np.float32)
    weight = torch.from_numpy(0.02 * rng.standard_t(4, (rows, columns))).to(TORCH[dtype])
    return weight, reference.hessian(inputs)


def both(
    weight: torch.Tensor, h: npt.NDArray[np.float64] | None, settings: Settings
) -> tuple[Quantized, Quantized]:
    fast = spqr.quantize(weight, None if h is None else torch.from_numpy(h), settings, torch.float64)
    slow = reference.quantize(weight.float().numpy(), h, settings, fast.dtype)
    return fast, slow


def assert_equal(a: Quantized, b: Quantized) -> None:
    for field in fields(Quantized):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, field.name
            np.testing.assert_array_equal(x, y, field.name)
        else:
            assert x == y, field.name
    np.testing.assert_array_equal(dequantize_torch.dequantize(a).float().numpy(), dequantize.dequantize(b))


def loss(weight: torch.Tensor, h: npt.NDArray[np.float64], q: Quantized) -> float:
    """Squared error of the layer's output over that of its signal."""
    w = weight.double().numpy()
    e = dequantize.dequantize(q) - w
    return float(np.trace(e @ h @ e.T) / np.trace(w @ h @ w.T))


@pytest.mark.parametrize("order", ["none", "columns", "groups"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_and_order_equals_the_reference(bits: int, order: str) -> None:
    weight, h = layer(seed=bits)
    fast, slow = both(weight, h, preset("4-bit", bits=bits, act_order=order))
    assert len(slow.outlier_value) > 0
    assert (slow.order is not None) == (order == "columns")
    assert_equal(fast, slow)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_weight_type_equals_the_reference(dtype: str) -> None:
    weight, h = layer(dtype=dtype)
    fast, slow = both(weight, h, preset("3-bit"))
    assert slow.dtype == dtype
    assert_equal(fast, slow)


@pytest.mark.parametrize("settings", [rtn(3), rtn(4, 32), gptq(3), gptq(4, 32), gptq(4, 160)])
def test_baselines_equal_the_reference(settings: Settings) -> None:
    weight, h = layer(columns=200)
    assert_equal(*both(weight, h if settings.feedback else None, settings))


@pytest.mark.parametrize(
    ("rows", "columns", "group", "run"),
    [(1, 64, 16, 16), (17, 70, 16, 16), (33, 300, 24, 8), (20, 260, 128, 64), (16, 33, 16, 3), (5, 10, 1, 2)],
)
@pytest.mark.parametrize("order", ["columns", "groups"])
def test_shapes_that_divide_nothing_equal_the_reference(
    rows: int, columns: int, group: int, run: int, order: str
) -> None:
    weight, h = layer(rows, columns)
    assert_equal(*both(weight, h, preset("4-bit", group=group, rows=run, stat_bits=4, act_order=order)))


def test_a_row_of_outliers_is_kept() -> None:
    weight, h = layer()
    weight[7] *= 200
    weight[7, ::2] += 30
    fast, slow = both(weight, h, preset("3-bit", tau=1e-4))
    assert_equal(fast, slow)
    kept = (slow.outlier_index // weight.shape[1] == 7).sum()
    assert kept > 0.9 * weight.shape[1]
    served = dequantize.dequantize(slow)[7]
    np.testing.assert_allclose(served, weight[7].float(), rtol=2**-7, atol=2**-7 * 60)


def test_dead_inputs_are_rounded_not_lost() -> None:
    weight, h = layer()
    dead = [3, 4, 5, 50, 95]
    h[dead, :] = h[:, dead] = 0
    for damping in (0.01, 0.0):
        fast, slow = both(weight, h, preset("4-bit", percdamp=damping))
        assert_equal(fast, slow)
        served = dequantize.dequantize(slow)[:, dead]
        spread = float(weight.float().abs().max())
        np.testing.assert_allclose(served, weight[:, dead].float(), atol=2 * spread / 15)
        assert np.corrcoef(served.ravel(), weight[:, dead].float().numpy().ravel())[0, 1] > 0.95


def test_no_calibration_at_all_is_plain_rounding() -> None:
    weight, h = layer()
    fast, slow = both(weight, np.zeros_like(h), preset("4-bit"))
    assert_equal(fast, slow)
    assert loss(weight, np.eye(len(h)), slow) < 0.02


def test_constant_and_zero_rows_are_exact() -> None:
    weight, h = layer()
    weight[:16] = 0
    weight[16:32] = 0.5
    fast, slow = both(weight, h, preset("4-bit", tau=float("inf")))
    assert_equal(fast, slow)
    np.testing.assert_array_equal(dequantize.dequantize(slow)[:32], weight[:32].float())


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**40])
def test_the_scale_of_the_weights_does_not_matter(scale: float) -> None:
    weight, h = layer()
    plain = reference.quantize(weight.float().numpy(), h, preset("4-bit"))
    fast, scaled = both(weight * scale, h, preset("4-bit"))
    assert_equal(fast, scaled)
    np.testing.assert_array_equal(plain.codes, scaled.codes)
    np.testing.assert_array_equal(plain.stats, scaled.stats)


def test_float32_differs_only_by_rounding() -> None:
    """Ties fall differently and feedback carries that on: few codes differ, and the loss stays."""
    weight, h = layer(128, 384)
    exact = reference.quantize(weight.float().numpy(), h, preset("4-bit"))
    quick = spqr.quantize(weight, torch.from_numpy(h), preset("4-bit"))
    assert (exact.codes != quick.codes).mean() < 0.01
    assert loss(weight, h, quick) == pytest.approx(loss(weight, h, exact), rel=2e-3)


def test_feedback_beats_rounding_and_outliers_beat_feedback() -> None:
    weight, h = layer(128, 256)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.002] = 0.5
    rounded = reference.quantize(weight.float().numpy(), None, rtn(4))
    fed_back = spqr.quantize(weight, torch.from_numpy(h), gptq(4))
    sparse = spqr.quantize(weight, torch.from_numpy(h), preset("4-bit", percdamp=0.01))
    assert loss(weight, h, sparse) < 0.5 * loss(weight, h, fed_back) < 0.5 * loss(weight, h, rounded)


def test_bits_are_counted_exactly() -> None:
    weight, h = layer(32, 256)
    q = spqr.quantize(weight, torch.from_numpy(h), preset("4-bit"))
    bits = q.bits()
    assert bits.weights == 32 * 256
    assert bits.codes == 4 * 32 * 256
    # 3 + 3 bits per group of 16, 64 per 16 groups of 16 rows
    assert bits.statistics == 6 * 32 * 16 + 64 * 2 * 16
    ordered = spqr.quantize(weight, torch.from_numpy(h), preset("4-bit", act_order="columns")).bits()
    assert ordered.statistics == bits.statistics + 16 * 256  # 16 per column of order
    assert bits.outliers == 32 * len(q.outlier_value) + 16 * 2
    assert bits.per_weight == pytest.approx(bits.total / 8192)
    assert spqr.quantize(weight, None, rtn(3, 64)).bits().per_weight == pytest.approx(3 + 32 / 64)


def test_a_weight_that_is_no_number_is_named() -> None:
    weight, h = layer()
    for bad in (float("nan"), float("inf")):
        weight[3, 5] = bad
        with pytest.raises(UsageError, match=r"layers\.0\.q"):
            spqr.quantize(weight, torch.from_numpy(h), preset("4-bit"), name="layers.0.q")


def test_other_types_and_shapes_are_refused() -> None:
    with pytest.raises(UnknownDtype, match="experts"):
        spqr.quantize(torch.zeros(4, 4, dtype=torch.int8), None, rtn(4), name="experts")
    with pytest.raises(UsageError, match="matrices"):
        spqr.quantize(torch.zeros(2, 4, 4), None, rtn(4))


def test_a_singular_hessian_is_damped_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    weight, _ = layer()
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    h = torch.from_numpy(reference.hessian(x))
    q = spqr.quantize(weight, h, preset("4-bit", percdamp=0.0))
    assert "damping raised" in caplog.text
    assert np.isfinite(dequantize.dequantize(q)).all()
