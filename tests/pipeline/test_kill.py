"""kill -9, at every file operation and at random moments: nothing loads wrongly, and a second run ends the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crafting import Tensor, gaussian, write_model
from tersor.pipeline.compress import compress

SCRIPT = Path(__file__).with_name("crashing.py")


def crash(mode: str, job: str, source: Path, scratch: Path) -> int:
    """Run the crashing script; the number of kills it made."""
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), mode, job, str(source), str(scratch)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def source(job: str, plain: Path) -> Path:
    """What the job starts from: the plain model, or its compressed form."""
    return plain if job == "compress" else compress(plain, plain.with_name("compressed")).path


@pytest.mark.parametrize("job", ["compress", "decompress"])
def test_killed_at_every_file_operation(job: str, tmp_path: Path) -> None:
    shards = [
        {"a": gaussian((64, 128)), "b": Tensor("I64", (3,), bytes(24)), "c": gaussian((80, 64), seed=1)},
        {"d": gaussian((64, 64), "F16"), "e": Tensor("F32", (0,), b"")},
    ]
    plain = write_model(tmp_path / "plain", shards)
    assert crash("steps", job, source(job, plain), tmp_path) > 20


@pytest.mark.parametrize("job", ["compress", "decompress"])
def test_killed_at_random_moments(job: str, tmp_path: Path) -> None:
    """24 MB in three shards, twenty kills."""
    tensors = [gaussian((1024, 1024), seed=i) for i in range(12)]
    shards = [{f"w{i}": tensors[i] for i in range(first, first + 4)} for first in (0, 4, 8)]
    plain = write_model(tmp_path / "plain", shards)
    assert crash("moments", job, source(job, plain), tmp_path) >= 20
