"""What the job refuses, and how it says so; nothing appears at the output."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tersor.format.errors import UsageError
from tersor.pipeline.compress import compress
from tersor.pipeline.near_lossless.goal import Calibration, one_method, target
from tersor.pipeline.near_lossless.job import compress_near_lossless

Build = Callable[[str], Path]
SPQR = one_method("spqr", 4)


def test_too_little_text(plain: Build, texts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has \d+ tokens, but 500 sequences of 32 need 16000"):
        compress_near_lossless(plain("llama"), tmp_path / "out", SPQR, Calibration(texts[0], 500, 32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "word"), [(b"\xff\xfe\x00\x01" * 99, "UTF-8"), (b"a\0b" * 99, "NUL")])
def test_calibration_that_is_no_text(content: bytes, word: str, plain: Build, tmp_path: Path) -> None:
    (tmp_path / "calib.bin").write_bytes(content)
    with pytest.raises(UsageError, match=f"calib.bin is not text.*{word}"):
        compress_near_lossless(
            plain("llama"), tmp_path / "out", SPQR, Calibration(tmp_path / "calib.bin", 8, 32)
        )


def test_sequences_longer_than_the_context(plain: Build, texts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="context of 64"):
        compress_near_lossless(plain("llama"), tmp_path / "out", SPQR, Calibration(texts[0], 2, 65))


def test_weights_that_are_no_numbers(plain: Build, calibration: Calibration, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(plain("llama"), broken)
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"layers\.1"):
        compress_near_lossless(broken, tmp_path / "out", SPQR, calibration)
    assert not (tmp_path / "out").exists()


def test_a_bound_needs_other_text(
    plain: Build, calibration: Calibration, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    goal = target("kl", 0.01, "spqr")
    with pytest.raises(UsageError, match="--heldout"):
        compress_near_lossless(plain("llama"), tmp_path / "out", goal, calibration)
    with pytest.raises(UsageError, match="is the calibration text too"):
        compress_near_lossless(plain("llama"), tmp_path / "out", goal, calibration, held_out=texts[0])


def test_models_that_cannot_be_quantised(plain: Build, calibration: Calibration, tmp_path: Path) -> None:
    compress(plain("llama"), tmp_path / "compressed")
    with pytest.raises(UsageError, match="is compressed already"):
        compress_near_lossless(tmp_path / "compressed", tmp_path / "out", SPQR, calibration)
    with pytest.raises(UsageError, match="is a single file"):
        compress_near_lossless(
            plain("llama") / "model.safetensors", tmp_path / "out.safetensors", SPQR, calibration
        )
