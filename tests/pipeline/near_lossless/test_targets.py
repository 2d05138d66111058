"""Goals that an allocation reaches: kept on disk and by measurement, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tersor.format.errors import UsageError
from tersor.pipeline.near_lossless.attempts import parse_method
from tersor.pipeline.near_lossless.attempts import plain as plain_method
from tersor.pipeline.near_lossless.goal import Calibration, Goal, one_method, target
from tersor.pipeline.near_lossless.job import NearLosslessResult, compress_near_lossless
from tersor.pipeline.verify import verify
from tersor.quantize.integers import IntegerSettings
from tersor.quantize.settings import preset

Build = Callable[[str], Path]


@pytest.fixture
def run(
    plain: Build, calibration: Calibration, texts: tuple[Path, Path], tmp_path: Path
) -> Callable[[Goal], NearLosslessResult]:
    def job(goal: Goal) -> NearLosslessResult:
        return compress_near_lossless(
            plain("one block"), tmp_path / "out", goal, calibration, held_out=texts[1]
        )

    return job


@pytest.mark.parametrize(("bits", "family"), [(5.3, "spqr"), (4.4, "integers")])
def test_an_average_is_kept(
    bits: float, family: str, run: Callable[[Goal], NearLosslessResult], tmp_path: Path
) -> None:
    result = run(target("bits", bits, family))  # type: ignore[arg-type]
    # of what is quantised; a small matrix may stay lossless, which counts too
    assert bits - 0.8 < result.bits.per_weight <= bits
    assert verify(tmp_path / "out").ok


def test_a_size_is_kept(run: Callable[[Goal], NearLosslessResult], tmp_path: Path) -> None:
    result = run(target("size", 218_000, "spqr"))
    file = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 200_000 < file <= 218_000
    assert result.quantized_tensors > 0


@pytest.mark.parametrize(("kind", "bound"), [("kl", 2e-3), ("ppl", 0.02)])
def test_a_bound_holds(kind: str, bound: float, run: Callable[[Goal], NearLosslessResult]) -> None:
    result = run(target(kind, bound, "spqr"))  # type: ignore[arg-type]
    assert result.reached
    assert result.held_out is not None
    loss, stderr = (
        (result.held_out.kl, result.held_out.kl_stderr)
        if kind == "kl"
        else (result.held_out.perplexity_loss, result.held_out.perplexity_loss_stderr)
    )
    assert loss + stderr <= bound
    assert 1 <= len(result.tried) <= 5


def test_a_bound_that_nothing_keeps_leaves_all_lossless(
    run: Callable[[Goal], NearLosslessResult], plain: Build, tmp_path: Path
) -> None:
    result = run(target("kl", 1e-11, "spqr"))
    assert not result.reached
    assert (result.quantized_tensors, result.held_out) == (0, None)
    found = verify(tmp_path / "out", against=plain("one block"))
    assert found.ok
    assert found.quantized == 0


@pytest.mark.parametrize(("kind", "value"), [("bits", 1.2), ("size", 50_000)])
def test_what_cannot_be_had_is_said(
    kind: str, value: float, run: Callable[[Goal], NearLosslessResult], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="ask for more"):
        run(target(kind, value, "spqr"))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_methods_are_kept_as_json() -> None:
    for method in (preset("3-bit"), preset("4-bit", tau=float("inf")), IntegerSettings(3.5)):
        assert parse_method(plain_method({"w": method})["w"]) == method


def test_settings_that_a_method_lacks_are_refused() -> None:
    for family, options, word in (
        ("gptq", {"tau": 0.1}, "--tau"),
        ("rtn", {"rows": 16}, "--rows"),
        ("integers", {"group": 16}, "--group"),
    ):
        with pytest.raises(UsageError, match=word):
            one_method(family, 4, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="whole number"):
        one_method("gptq", 4.5)
    with pytest.raises(UsageError, match="2 to 8"):
        one_method("spqr", 9)
    with pytest.raises(UsageError, match="leave --method out"):
        target("kl", 0.01, "rtn")
    with pytest.raises(UsageError, match="positive"):
        target("size", -1, "spqr")
