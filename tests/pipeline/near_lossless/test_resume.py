"""kill -9 while quantising, measuring and writing: a second run goes on, and ends with the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from crafting import tree
from tersor.format.errors import Interrupted, OutputExists, UsageError
from tersor.pipeline.near_lossless.attempts import Step
from tersor.pipeline.near_lossless.goal import Calibration, Goal, one_method, target
from tersor.pipeline.near_lossless.job import compress_near_lossless
from tersor.quantize import store

Build = Callable[[str], Path]

# Kills itself at the given step of quantising, of measuring, or of writing.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tersor.pipeline.near_lossless.goal import Calibration, Goal, one_method, target
from tersor.pipeline.near_lossless.job import compress_near_lossless
model, out, calib, held_out, what, stage, at = sys.argv[1:]
left = int(at)
def tick(matches):
    global left
    left -= matches
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
goal = one_method("spqr", 4) if what == "method" else Goal("kl", 2e-3, target("kl", 2e-3, "spqr").methods[1::2])
compress_near_lossless(
    model, out, goal, Calibration(Path(calib), 8, 32), held_out=held_out or None,
    on_step=lambda step: tick(step.stage.startswith(stage)),
    on_progress=lambda progress: tick(stage == "writing"),
)
"""
GOALS: dict[str, Goal] = {
    "method": one_method("spqr", 4),
    "kl": Goal("kl", 2e-3, target("kl", 2e-3, "spqr").methods[1::2]),
}
Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def undisturbed(
    plain: Build, calibration: Calibration, texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    """What a job ends with when nothing kills it."""
    root = tmp_path_factory.mktemp("undisturbed")

    def run(what: str) -> Path:
        if not (root / what).exists():
            held_out = texts[1] if what == "kl" else None
            compress_near_lossless(
                plain("one block"), root / what, GOALS[what], calibration, held_out=held_out
            )
        return root / what

    return run


@pytest.mark.parametrize(
    ("what", "stage", "at"),
    [
        ("method", "quantising", 3),
        ("method", "writing", 5),
        ("kl", "quantising, attempt 1", 4),
        ("kl", "measuring on held-out", 2),
    ],
)
def test_killed_and_run_again(
    what: str,
    stage: str,
    at: int,
    plain: Build,
    calibration: Calibration,
    texts: tuple[Path, Path],
    undisturbed: Whole,
    tmp_path: Path,
) -> None:
    held_out = texts[1] if what == "kl" else None
    out = tmp_path / "out"
    goal = GOALS[what]
    arguments = [str(plain("one block")), str(out), str(texts[0]), str(held_out or ""), what, stage, str(at)]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == -9, ran.stderr
    assert not out.exists()
    steps: list[Step] = []
    result = compress_near_lossless(
        plain("one block"), out, goal, calibration, held_out=held_out, on_step=steps.append
    )
    assert tree(out) == tree(undisturbed(what))
    kept = [step for step in steps if step.layer and step.layer.error is None]
    if stage == "writing":
        assert not steps
        assert result.compressed.resumed_tensors in (at - 1, at)  # the writer may be one behind
    elif what == "method":
        assert len(kept) == at


def test_killed_after_the_output_appeared(
    plain: Build, calibration: Calibration, undisturbed: Whole, tmp_path: Path
) -> None:
    """Between renaming the output and sweeping up, the last step of all: the next run sweeps."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed("method"), out)
    (out / ".tersor-scratch" / "x").mkdir(parents=True)
    (out / ".tersor-job.json").touch()
    with pytest.raises(OutputExists):
        compress_near_lossless(plain("one block"), out, GOALS["method"], calibration)
    assert tree(out) == tree(undisturbed("method"))


def test_a_full_disk_while_quantising_is_told_and_gone_on_from(
    plain: Build,
    calibration: Calibration,
    undisturbed: Whole,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    kept, left = store.save_file, 3

    def full(*arguments: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        kept(*arguments)  # type: ignore[arg-type]

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", full)
        with pytest.raises(Interrupted, match=r"No space left .* run the same command again"):
            compress_near_lossless(plain("one block"), out, GOALS["method"], calibration)
    compress_near_lossless(plain("one block"), out, GOALS["method"], calibration)
    assert tree(out) == tree(undisturbed("method"))


def test_another_goal_does_not_take_up_what_is_left(
    plain: Build, calibration: Calibration, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = [
        str(plain("one block")),
        str(tmp_path / "out"),
        str(texts[0]),
        "",
        "method",
        "quantising",
        "3",
    ]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, check=False)
    assert (tmp_path / "out.partial").exists()
    for goal, text in ((one_method("spqr", 3), texts[0]), (one_method("spqr", 4), texts[1])):
        with pytest.raises(UsageError, match="left by another job"):
            compress_near_lossless(plain("one block"), tmp_path / "out", goal, Calibration(text, 4, 32))
