"""Calibration text: what is drawn, and every way in which a file can be unusable."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tersor.quantize.calibration import (
    CHUNK,
    CalibrationError,
    calibration_sequences,
    draw,
    read_documents,
    tokenize,
)


class Bytes:
    """A tokenizer of bytes with a begin mark."""

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [256] * add_special_tokens + list(text.encode())}


def test_the_seed_decides_and_windows_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i:07d}\n" for i in range(500)))
    first = calibration_sequences(path, Bytes(), count=20, length=64, seed=1)
    assert first.shape == (20, 64)
    assert torch.equal(first, calibration_sequences(path, Bytes(), count=20, length=64, seed=1))
    assert not torch.equal(first, calibration_sequences(path, Bytes(), count=20, length=64, seed=2))
    numbers = [n for row in first for n in bytes(row.remainder(256).tolist()).decode("latin1").split("\n")]
    whole = [n for n in numbers if len(n) == 7]
    assert len(set(whole)) == len(whole) > 100


def test_jsonl_documents_each_get_their_begin_mark(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "one\ntwo", "id": 1}) + "\n\n" + json.dumps("three") + "\n")
    assert read_documents(path) == ["one\ntwo", "three"]
    tokens = tokenize(read_documents(path), Bytes())
    assert tokens.tolist() == [256, *b"one\ntwo", 256, *b"three"]


def test_long_text_is_tokenised_in_pieces_without_loss() -> None:
    text = ("word " * 20 + "\n") * (CHUNK // 50)
    assert bytes(tokenize([text], Bytes())[1:].tolist()).decode() == text


def test_too_little_text_says_how_much_there_is() -> None:
    with pytest.raises(CalibrationError, match=r"has 1000 tokens.*need 12800.*at most 7 sequences"):
        draw(torch.arange(1000), count=100, length=128)
    with pytest.raises(CalibrationError, match="no calibration"):
        draw(torch.arange(1000), count=0, length=128)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text \xff\xfe", "byte 5 is not UTF-8"),
        ("a.txt", b"text\0more", "NUL at character 4"),
        ("a.jsonl", b'{"text": "good"}\n{"text": bad}\n', "line 2: not JSON"),
        ("a.jsonl", b'{"words": "good"}\n', 'line 1: expected a string or an object with a "text"'),
    ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_documents(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nowhere\.txt"):
        read_documents(tmp_path / "nowhere.txt")


def test_packed_text(tmp_path: Path) -> None:
    """As the Hub's large texts are: gzip over JSON, a document a line."""
    path = tmp_path / "c4.json.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert read_documents(path) == ["one", "two"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CalibrationError, match=r"cannot read the text .*c4\.json\.gz"):
        read_documents(path)
    path.write_bytes(b"not packed")
    with pytest.raises(CalibrationError, match="cannot read the text"):
        read_documents(path)


def test_the_beginning_of_a_large_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole lines, up to the limit."""
    monkeypatch.setattr("tersor.quantize.calibration.LIMIT", 10)
    path = tmp_path / "text.txt"
    path.write_text("1234\n6789\nabcd\n")
    assert read_documents(path) == ["1234\n6789\n"]
