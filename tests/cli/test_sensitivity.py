"""`tersor sensitivity`: a table of errors and pictures of the matrices that are meant."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

Command = Any
HEAD = "model.layers.0.self_attn.k_proj"


@pytest.fixture
def look(tersor: Command, demo_model: Path, texts: tuple[Path, Path]) -> Command:
    pytest.importorskip("transformers")
    text = ("--calib", texts[0], "--sequences", 4, "--length", 48)
    return lambda *more: tersor("sensitivity", demo_model, *text, *more)


def size_of_png(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_one_matrix_is_drawn(look: Command, tmp_path: Path) -> None:
    picture = tmp_path / "a" / "folder" / "map.png"
    ran = look("--layer", HEAD, "--out", picture)
    assert ran.status == 0, ran.err
    assert size_of_png(picture) == (128, 64)
    assert HEAD in ran.out
    assert "output error -" in ran.err
    assert "spqr 3 bits" in ran.out


def test_a_table_of_all_and_a_folder_of_some(look: Command, tmp_path: Path) -> None:
    every = look("--method", "rtn", "--bits", 4, "--json").json
    assert len(every["layers"]) == 28
    assert all(0 < layer["error"] < 0.1 and layer["picture"] is None for layer in every["layers"])
    some = look(
        "--method", "rtn", "--bits", 3, "--layer", "*.o_proj.weight", "--out", tmp_path / "maps", "--json"
    ).json
    assert [layer["name"] for layer in some["layers"]] == [
        f"model.layers.{i}.self_attn.o_proj.weight" for i in range(4)
    ]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        f"model.layers.{i}.self_attn.o_proj.png" for i in range(4)
    ]
    errors = {layer["name"]: layer["error"] for layer in every["layers"]}
    assert all(layer["error"] > 2 * errors[layer["name"]] for layer in some["layers"])


def test_what_is_not_there_or_cannot_be_one_picture(look: Command, tmp_path: Path) -> None:
    ran = look("--layer", "model.layers.9.*")
    assert ran.status == 2
    assert (
        "no matrix of its blocks is called model.layers.9.*; there are 28, such as model.layers.0." in ran.err
    )
    ran = look("--layer", "*.o_proj", "--out", tmp_path / "map.png")
    assert ran.status == 2
    assert "give a folder" in ran.err
    assert not list(tmp_path.glob("*.png"))


def test_matrices_without_tokens_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Experts that calibration did not reach are not left out in silence."""
    from tersor.cli.commands import sensitivity
    from tersor.pipeline.sensitivity import Sensitivity

    sensitivity._show(Sensitivity(tmp_path, "spqr 3 bits", (), ("model.experts.3.up_proj.weight",)))
    assert "reached 1 more, such as model.experts.3.up_proj.weight" in " ".join(
        capsys.readouterr().out.split()
    )
