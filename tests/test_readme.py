"""The README is true: its Python runs, its commands exist with the options it names."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tersor.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DEMO_MODEL = Path(str(files("tersor") / "demo_model"))


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=["promise", "quick start"])
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs as written, with the shipped model in place of the models it names."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    for name in ("SmolLM2-135M", "model"):
        (tmp_path / name).symlink_to(DEMO_MODEL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_commands_exist() -> None:
    """Every `tersor ...` line of the README names a command and options that its help knows."""
    lines = re.findall(r"^tersor +(\w+)(.*)$", README, re.MULTILINE)
    assert {command for command, _ in lines} >= {
        "plan",
        "compress",
        "verify",
        "run",
        "inspect",
        "decompress",
        "doctor",
    }
    for command, rest in lines:
        result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0, command
        for option in re.findall(r"--[a-z-]+", rest.split("#")[0]):
            assert option in result.output, f"{command} has no {option}"


def test_links_lead_somewhere() -> None:
    """Every relative link points to a file of the repository."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
