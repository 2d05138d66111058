"""What headers alone show of a broken quantised tensor, by the golden file of codec spqr and that of integers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crafting import edit_header
from tersor.format.checkpoint import open_checkpoint
from tersor.format.errors import (
    BadParameters,
    ExtraTensor,
    FormatError,
    MissingGuard,
    MissingTensor,
    WrongDtype,
    WrongShape,
)
from tersor.format.validate import check_compressed

GOLDEN = Path(__file__).parents[1] / "golden"
Edit = Callable[[dict[str, Any]], None]


def parameter(name: str, value: object) -> Edit:
    """Change a parameter of tensor "all"."""

    def edit(header: dict[str, Any]) -> None:
        document = json.loads(header["__metadata__"]["tersor"])
        document["tensors"]["all"]["parameters"][name] = value
        header["__metadata__"]["tersor"] = json.dumps(document)

    return edit


def renamed(old: str, new: str) -> Edit:
    def edit(header: dict[str, Any]) -> None:
        header[new] = header.pop(old)

    return edit


def stored(name: str, **fields: object) -> Edit:
    def edit(header: dict[str, Any]) -> None:
        header[name].update(fields)

    return edit


def without_guards(header: dict[str, Any]) -> None:
    del header["all"], header["least"]


@pytest.mark.parametrize(
    ("codec", "edit", "error"),
    [
        ("spqr", parameter("bits", 4), WrongShape),
        ("spqr", parameter("bits", 1), BadParameters),
        ("spqr", parameter("group", 17), WrongShape),
        ("spqr", parameter("rows", 4), WrongShape),
        ("spqr", parameter("stat_bits", 4), WrongShape),
        ("spqr", parameter("order", False), ExtraTensor),
        ("spqr", parameter("outliers", 0), ExtraTensor),
        ("spqr", parameter("outliers", 7), WrongShape),
        ("spqr", renamed("all_order", "all_older"), MissingTensor),
        ("spqr", renamed("all_levels", "x"), MissingTensor),
        ("spqr", stored("all_stats", dtype="F16"), WrongDtype),
        ("spqr", stored("all_places", dtype="BF16"), WrongDtype),
        ("spqr", without_guards, MissingGuard),
        ("integers", parameter("bits", 4), BadParameters),
        ("integers", renamed("all_steps", "all_scales"), MissingTensor),
        ("integers", stored("all_steps", shape=[1, 300]), WrongShape),
        ("integers", without_guards, MissingGuard),
    ],
)
def test_refused_by_name(codec: str, edit: Edit, error: type[FormatError], tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    shutil.copyfile(GOLDEN / f"{codec}.safetensors", path)
    assert check_compressed(open_checkpoint(path))
    edit_header(path, edit)
    with pytest.raises(error, match=r"broken\.safetensors"):
        check_compressed(open_checkpoint(path))
