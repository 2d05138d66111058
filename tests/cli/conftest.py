"""The command line, run in this process: its exit status and what it wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crafting import Tensor, gaussian, write_model
from tersor.cli.app import run


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON document."""
        return json.loads(self.out)


Command = Callable[..., Ran]
TEXT = "The river rises in the mountains and flows to the sea . It is long and wide .\n"


@pytest.fixture
def tersor(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`tersor(*arguments)`: the command as a shell would run it, output taken from the file descriptors."""

    def command(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["tersor", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run()
        text = capfd.readouterr()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0 if code is None else 1, text.out, text.err)

    return command


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A small model: a matrix that is coded and a vector that is not."""
    return write_model(
        tmp_path / "plain",
        [{"layer.weight": gaussian((64, 256)), "layer.bias": Tensor("F32", (4,), bytes(16))}],
    )


@pytest.fixture
def compressed(plain: Path, tmp_path: Path) -> Path:
    """Its compressed form."""
    from tersor.pipeline.compress import compress

    return compress(plain, tmp_path / "compressed").path


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    """Text to calibrate on, and held-out text."""
    calib, held_out = tmp_path / "calib.txt", tmp_path / "heldout.txt"
    calib.write_text(TEXT * 30)
    held_out.write_text(TEXT[::-1] * 6)
    return calib, held_out
