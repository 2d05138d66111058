"""tersor eval: tables and JSON with their numbers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

Command = Any


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rivers.txt"
    path.write_text("The river rises in the mountains and flows to the sea . It is long and wide .\n" * 12)
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "riddles.jsonl"
    row = {"query": "Where does the river rise?", "choices": ["in the mountains", "xq zv"], "gold": 0}
    path.write_text("\n".join(json.dumps(row) for _ in range(3)))
    return path


def test_a_table_for_people(tersor: Command, demo_model: Path, text: Path, task: Path) -> None:
    ran = tersor("eval", demo_model, "--text", text, "--tasks", task, "--against", demo_model, "--length", 64)
    assert ran.status == 0, ran.err
    for word in ("rivers.txt", "riddles.jsonl", "perplexity", "bits per byte", "KL (nats)", "acc_norm", "±"):
        assert word in ran.out


def test_json_has_every_number(tersor: Command, demo_model: Path, text: Path, task: Path) -> None:
    ran = tersor(
        "eval", demo_model, "--text", text, "--tasks", task, "--against", demo_model, "--length", 64, "--json"
    )
    found = ran.json["results"]
    assert found["divergences"]["rivers.txt"]["kl"] == 0
    assert found["divergences"]["rivers.txt"]["same_top"] == 1
    assert found["texts"]["rivers.txt"]["perplexity"] > 1
    assert found["tasks"]["riddles.jsonl"]["rows"] == 3
    assert found["tasks"]["riddles.jsonl"]["acc"] == 1
    assert ran.json["length"] == 64


def test_arithmetic_is_chosen_and_told(tersor: Command, demo_model: Path, text: Path) -> None:
    ran = tersor("eval", demo_model, "--text", text, "--length", 64, "--dtype", "float32", "--device", "cpu")
    assert "on cpu in float32" in ran.out
    assert tersor("eval", demo_model, "--text", text, "--length", 64, "--json").json["dtype"] == "bfloat16"
    refused = tersor("eval", demo_model, "--text", text, "--dtype", "float31")
    assert refused.status == 2
    assert "float31" in refused.err


def test_one_window_has_no_standard_error(
    tersor: Command, demo_model: Path, text: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:80])
    ran = tersor("eval", demo_model, "--text", short, "--json")
    assert ran.json["results"]["texts"]["short.txt"]["loss_stderr"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to evaluate"),
        (["--tasks", "TASK", "--against", "MODEL"], "give --text"),
        (["--text", "TEXT", "--length", "100000"], "this model takes"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--tasks", "TEXT"], "rivers.txt"),
    ],
)
def test_refused(
    tersor: Command, demo_model: Path, text: Path, task: Path, options: list[str], message: str
) -> None:
    known = {"TASK": str(task), "TEXT": str(text), "MODEL": str(demo_model)}
    ran = tersor("eval", demo_model, *(known.get(option, option) for option in options))
    assert ran.status == 2
    assert message in ran.err
