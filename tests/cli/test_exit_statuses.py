"""Errors: a message and a documented status for each, the same as JSON, and nothing on stdout otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from malicious import DAMAGES, Damage, write_compressed
from tersor.format import errors

Command = Any


def test_every_error_has_a_status() -> None:
    found = {c.__name__: c.exit_status for c in vars(errors).values() if isinstance(c, type)}
    assert {n: s for n, s in found.items() if n.endswith("Error") or s != found["FormatError"]} == {
        "TersorError": 1,
        "UsageError": 2,
        "OutputExists": 2,
        "FormatError": 3,
        "VerificationError": 4,
        "HashMismatch": 4,
        "NotCanonical": 4,
        "Interrupted": 5,
        "MissingDependency": 6,
        "KernelError": 7,
    }


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compress", "nothing", "out"], "no such file"),
        (["verify", "nothing"], "no such file"),
        (["decompress", "nothing", "out"], "no such file"),
        (["inspect", "nothing"], "no such file"),
        (["plan", "nothing"], "no such file"),
        (["plan", "plain", "--gpu", "large"], "24GB"),
        (["plan", "plain", "--context", "-1"], "8192"),
        (["inspect", "compressed", "ghost"], "'ghost'"),
        (["compress", "plain", "compressed"], "exists already"),
        (["decompress", "compressed", "plain"], "exists already"),
        (["compress", "plain", "plain/inside"], "inside"),
        (["compress", "compressed", "twice"], "compressed already"),
        (["demo", "--keep", "plain"], "exists already"),
    ],
)
def test_wrong_usage_is_2(
    tersor: Command,
    plain: Path,
    compressed: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    word: str,
) -> None:
    monkeypatch.chdir(plain.parent)
    before = sorted(plain.parent.rglob("*"))
    ran = tersor(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert word in ran.err
    assert "Traceback" not in ran.err
    as_json = tersor(*arguments, "--json")
    assert as_json.status == 2
    assert word in as_json.json["error"]["message"]
    assert as_json.json["error"]["type"] in ("UsageError", "OutputExists")
    assert sorted(plain.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compress"], "model"),
        (["frobnicate"], "frobnicate"),
        (["verify", "x", "--wrong"], "--wrong"),
        (["--wrong"], "--wrong"),
        (["eval", "x", "--dtype", "float31"], "float31"),
        (["eval", "x", "--limit", "0"], "--limit"),
        (["plan", "x", "--context"], "--context"),
        (["verify", "x", "y"], "(y)"),
    ],
)
def test_what_cannot_be_parsed_is_2(tersor: Command, arguments: list[str], word: str) -> None:
    ran = tersor(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "Error" in ran.err
    assert word in ran.err
    as_json = tersor(arguments[0], "--json", *arguments[1:])
    assert as_json.status == 2
    assert as_json.json["error"]["type"] == "UsageError"
    assert "--help` lists" in as_json.json["error"]["message"]


def test_with_json_what_is_rejected_is_named(tersor: Command) -> None:
    ran = tersor("eval", "x", "--dtype", "float31", "--json")
    message = ran.json["error"]["message"]
    assert message.startswith("Invalid value for '--dtype'")
    assert "'float31' is not one of 'auto', 'float32'" in message
    assert message.endswith("; `tersor eval --help` lists what there is")
    assert message in ran.err.replace("\n", " ")
    assert "Traceback" not in ran.err


def test_help_and_success_end_with_0_with_json_too(tersor: Command, plain: Path) -> None:
    assert tersor("plan", "--help", "--json").status == 0
    assert tersor("plan", plain, "--json").status == 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_compressed(tmp_path_factory.mktemp("sound") / "model")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.name)
def test_malicious_checkpoints(tersor: Command, sound: Path, tmp_path: Path, damage: Damage) -> None:
    """verify and decompress: status 3 or 4, the error's name, file and tensor, and no output."""
    broken = Path(shutil.copytree(sound, tmp_path / "model"))
    damage.do(broken)
    ran = tersor("verify", broken)
    assert (ran.status, ran.out) == (4 if damage.in_data else 3, "")
    assert damage.error in ran.err
    for word in damage.mentions:
        assert word in ran.err
    assert "Traceback" not in ran.err
    as_json = tersor("verify", broken, "--json")
    if damage.in_data:
        assert [f["error"] for f in as_json.json["failures"]] == [damage.error]
    else:
        assert as_json.json["error"]["type"] == damage.error
    if damage.error != "NotCanonical":  # the values are right, only padding is not
        back = tersor("decompress", broken, tmp_path / "back")
        assert (back.status, back.out) == (getattr(errors, damage.error).exit_status, "")
    assert not (tmp_path / "back" / "config.json").exists() or damage.error == "NotCanonical"


def test_not_ours_is_3(tersor: Command, plain: Path) -> None:
    for command in (["verify", plain], ["inspect", plain], ["decompress", plain, plain.parent / "x"]):
        ran = tersor(*command)
        assert ran.status == 3
        assert "NotTersor" in ran.err


def test_a_missing_library_is_6(tersor: Command, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    ran = tersor("run", plain, "hello", "--json")
    assert ran.status == 6
    assert "pip install" in ran.json["error"]["message"]
