"""Every command: its help, its result for people, its result as JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from crafting import edit_tensor, gaussian, write_model
from tersor._version import __version__
from tersor.cli.app import app

COMMANDS = ["compress", "verify", "decompress", "inspect", "plan", "run", "doctor", "demo"]
Command = Any


def test_all_commands_are_known_and_tested(tersor: Command) -> None:
    registered = [c.name for c in app.registered_commands]
    assert set(COMMANDS) <= set(registered)
    shown = tersor("--help")
    assert shown.status == 0
    for name in registered:
        assert re.search(rf"^\W*{name}\s+\S", shown.out, re.MULTILINE), name


def test_the_help_documents_statuses_and_environment(tersor: Command) -> None:
    text = re.sub(r"\s+", " ", tersor("-h").out)
    for word in (
        "0 done",
        "1 failed",
        "2 wrong usage",
        "3 a checkpoint",
        "4 verification",
        "5 writing",
        "130",
        "TERSOR_",
    ):
        assert word in text


@pytest.mark.parametrize("name", sorted({c.name or "" for c in app.registered_commands}))
def test_each_help_has_an_example_and_json(tersor: Command, name: str) -> None:
    shown = tersor(name, "--help")
    assert shown.status == 0
    assert "Example" in shown.out
    assert f"tersor {name}" in shown.out.split("Example")[1]
    assert "--json" in shown.out
    assert not shown.err


def test_version(tersor: Command) -> None:
    assert tersor("--version").out == f"tersor {__version__}\n"


def test_no_arguments_show_the_help(tersor: Command) -> None:
    assert "compress" in tersor().out + tersor().err


def test_the_story_for_people(tersor: Command, plain: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    made = tersor("compress", plain, out)
    assert (made.status, made.err) == (0, "")
    assert str(out) in made.out.replace("\n", "")
    assert "1 of 2 tensors coded" in made.out
    proof = tersor("verify", out, "--against", plain)
    assert (proof.status, proof.err) == (0, "")
    assert proof.out.startswith("ok ")
    shown = tersor("inspect", out)
    assert shown.status == 0
    assert "layer.weight" in shown.out
    one = tersor("inspect", out, "layer.weight")
    assert one.status == 0
    assert "entropy bound" in one.out
    assert tersor("inspect", out, "layer.bias").out.count("stored as it is") == 1
    planned = tersor("plan", out, "--gpu", "24GB", "--context", "32k")
    assert planned.status == 0
    assert "32,768" in planned.out
    restored = tersor("decompress", out, back)
    assert (restored.status, restored.err) == (0, "")
    assert (back / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_the_story_as_json(tersor: Command, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = tersor("compress", plain, out, "--json")
    assert (made.status, made.err) == (0, "")
    assert made.json["path"] == str(out)
    assert (made.json["tensors"], made.json["compressed_tensors"], made.json["resumed_tensors"]) == (2, 1, 0)
    assert made.json["ratio"] == made.json["stored_bytes"] / made.json["original_bytes"] < 0.75
    assert made.json["original_bytes"] == 64 * 256 * 2 + 16
    proof = tersor("verify", out, "--against", plain, "--json").json
    assert (proof["ok"], proof["tensors"], proof["failures"]) == (True, 2, [])
    tensors = tersor("inspect", out, "--json").json["tensors"]
    assert [(t["name"], t["codec"], t["shape"]) for t in tensors] == [
        ("layer.weight", "huffman", [64, 256]),
        ("layer.bias", "raw", [4]),
    ]
    report = tersor("inspect", out, "layer.weight", "--json").json
    assert sum(report["counts"].values()) == 64 * 256
    assert report["summary"]["bits_per_weight"] > report["bound_bits"] > 8
    planned = tersor("plan", out, "--json", "--context", "1k").json
    assert (planned["context"], planned["parameters"]) == (1024, 64 * 256 + 4)
    assert planned["sizes"][1]["weight_bytes"] == made.json["stored_bytes"]
    restored = tersor("decompress", out, tmp_path / "back", "--json").json
    assert restored["original_bytes"] == made.json["original_bytes"]


def test_a_failed_verification(tersor: Command, compressed: Path, plain: Path, tmp_path: Path) -> None:
    edit_tensor(compressed / "model.safetensors", "layer.weight_tiles", lambda t: t.__setitem__(9, t[9] ^ 4))
    ran = tersor("verify", compressed)
    assert (ran.status, ran.out) == (4, "")
    assert "HashMismatch" in ran.err
    assert "'layer.weight'" in ran.err
    as_json = tersor("verify", compressed, "--json")
    assert as_json.status == 4
    assert as_json.json["ok"] is False
    assert [f["tensor"] for f in as_json.json["failures"]] == ["layer.weight"]
    refused = tersor("decompress", compressed, tmp_path / "back")
    assert refused.status == 4
    assert not (tmp_path / "back").exists()


def test_another_original_is_status_4(tersor: Command, compressed: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", [{"layer.weight": gaussian((64, 256), seed=3)}])
    ran = tersor("verify", compressed, "--against", other)
    assert ran.status == 4
    assert "'layer.weight'" in ran.err
    assert "'layer.bias'" in ran.err


def test_names_in_brackets_are_shown_as_they_are(tersor: Command, tmp_path: Path) -> None:
    """Rich's markup is [like this]; neither a path nor a tensor's name is markup."""
    plain = write_model(tmp_path / "[red]m[/]", [{"[bold]w[/x]": gaussian((64, 64))}])
    out = tmp_path / "c[/]"
    made = tersor("compress", plain, out)
    assert (made.status, made.err) == (0, "")
    assert "c[/]" in made.out
    assert tersor("verify", out, "--against", plain).out.count("[red]m[/]") == 1
    assert "[bold]w[/x]" in tersor("inspect", out).out
    assert "[bold]w[/x]" in tersor("inspect", out, "[bold]w[/x]").out
    assert "c[/]" in tersor("plan", out).out
    assert "c[/]" in tersor("decompress", out, tmp_path / "d").out + str(tmp_path / "c[/]")


def test_long_names_are_never_cut(tersor: Command, tmp_path: Path) -> None:
    long = "model." + ".".join(f"a_module_of_depth_{i}" for i in range(20)) + ".weight"
    made = tmp_path / "c"
    tersor("compress", write_model(tmp_path / "m", [{long: gaussian((64, 64))}]), made)
    assert [line for line in tersor("inspect", made).out.splitlines() if long in line and "huffman" in line]
