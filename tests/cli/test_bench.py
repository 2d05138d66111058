"""`tersor bench` measures what it says, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tersor.cli.app import app
from tersor.pipeline import bench
from tersor.pipeline.compress import compress


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec's speed, and nothing made up for a GPU that is not there."""
    monkeypatch.setattr(bench, "ROWS", 512)
    monkeypatch.setattr(bench, "_has_gpu", lambda: False)
    result = CliRunner().invoke(app, ["bench", "--json"])
    measured = json.loads(result.stdout)
    assert measured["gpu_codecs"] == measured["gpu_products"] == []
    assert 10.6 < measured["codec"]["bits_per_weight"] < 10.8
    assert measured["codec"]["encode_mb_per_second"] > 0 and measured["codec"]["decode_mb_per_second"] > 0


def test_models(demo_model: Path, tmp_path: Path) -> None:
    """A plain and a compressed model in the same loop: fewer bytes of weights in the second."""
    pytest.importorskip("transformers")
    made = compress(demo_model, tmp_path / "made").path
    arguments = ["bench", str(demo_model), str(made), "--tokens", "4", "--device", "cpu", "--json"]
    plain, ours = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert plain["tokens"] == ours["tokens"] == 4
    assert plain["tokens_per_second"] > 0 and ours["tokens_per_second"] > 0
    assert ours["weight_bytes"] < 0.7 * plain["weight_bytes"]
    assert ours["peak_gpu_bytes"] is None


def test_an_unknown_layout() -> None:
    """Named, with those that there are."""
    result = CliRunner().invoke(app, ["bench", "--layout", "quick"])
    assert result.exit_code != 0
