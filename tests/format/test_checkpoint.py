"""What makes a directory a model: its shards, its index, and the files that go along."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafting import Tensor, file_bytes, gaussian, write_model
from tersor.format.checkpoint import open_checkpoint
from tersor.format.errors import NotTersor, UsageError
from tersor.format.validate import check_compressed, is_compressed

W = {"w": gaussian((64, 64))}


def test_a_single_shard_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(file_bytes(W))
    assert [n for _, n in open_checkpoint(tmp_path).tensors()] == ["w"]
    (tmp_path / "model.safetensors").write_bytes(file_bytes({"v": Tensor("U8", (1,), b"x")}))
    assert [n for _, n in open_checkpoint(tmp_path).tensors()] == ["v"]


def test_an_index_counts_shards_in_order(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", [{"b": gaussian((8, 8))}, {"a": gaussian((8, 8))}])
    opened = open_checkpoint(model)
    assert [n for _, n in opened.tensors()] == ["b", "a"]
    assert opened.nbytes == 256
    assert opened.index == {"total_size": 256}
    assert not opened.is_file


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ([], "no .safetensors"),
        (["a.safetensors", "b.safetensors"], "2 safetensors files"),
        (["pytorch_model.bin"], "pickle"),
        (["a.safetensors.index.json", "b.safetensors.index.json"], "several indices"),
    ],
)
def test_no_model_here(tmp_path: Path, files: list[str], word: str) -> None:
    for file in files:
        (tmp_path / file).write_bytes(file_bytes(W))
    with pytest.raises(UsageError, match=word):
        open_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such"):
        open_checkpoint(tmp_path / "nothing")


def test_other_files_are_carried_and_other_weights_are_not(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", [W, {"v": gaussian((8, 8))}])
    keep = ["LICENSE", "tokenizer.model", "chat_template.jinja", "sub/notes.md", ".gitattributes"]
    leave = ["pytorch_model.bin", "onnx/model.onnx", "model.gguf", "old.safetensors", ".git/config", "x.part"]
    for file in keep + leave:
        (model / file).parent.mkdir(exist_ok=True)
        (model / file).write_text("x")
    assert {str(f) for f in open_checkpoint(model).other_files()} == {*keep, "tokenizer.json"}


def test_a_plain_model_is_not_compressed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", [W])
    assert not is_compressed(open_checkpoint(model))
    for path in (model, model / "model.safetensors"):
        with pytest.raises(NotTersor, match="tersor compress"):
            check_compressed(open_checkpoint(path))
    assert open_checkpoint(model / "model.safetensors").other_files() == []
