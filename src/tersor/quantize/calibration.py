"""Calibration text: from a file to token sequences of one length.

A `.jsonl` file (or `.json.gz`, as C4 calls it) is one document a line, either a string or an object with
a "text" field; any other file is one document. All may be packed with gzip, and of a large one only the
beginning is read (`LIMIT`, some two hundred times what the usual 128 sequences take). The text is
tokenised as the tokenizer sees fit (with its begin and end marks), joined, cut into windows of `length`
tokens without overlap, and `count` of them are drawn by `seed`. A text that is too short is an error:
fewer sequences than asked for would silently give a worse model.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.format.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 1 << 28  # bytes of a text that are read at most, unpacked
CHUNK = 1 << 20  # characters tokenised at once, cut at line ends: some tokenizers slow down on more


class CalibrationError(UsageError):
    """Calibration text that is missing, too short or not text."""


def read_documents(path: str | Path) -> list[str]:
    """The documents of a text or jsonl file. Raises `CalibrationError`, naming the place."""
    path = Path(path)
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            data = data[: data.rfind(b"\n", 0, LIMIT) + 1]
        text = data.decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise CalibrationError(f"cannot read the text {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not text: byte {error.start} is not UTF-8; give a plain text or jsonl file"
        ) from error
    if "\0" in text:
        raise CalibrationError(f"{path} is not text: it holds a NUL at character {text.index(chr(0))}")
    kind = (path.with_suffix("") if packed else path).suffix
    if kind in (".jsonl", ".ndjson") or (packed and kind == ".json"):
        return [_document(path, n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [text]


def _document(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{path}, line {number}: not JSON ({error.msg})") from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise CalibrationError(f'{path}, line {number}: expected a string or an object with a "text" field')
    return text


def tokenize(documents: list[str], tokenizer: Any) -> Tensor:
    """All tokens of all documents, one after the other, (T,) int64."""
    import torch

    ids: list[int] = []
    for document in documents:
        for n, chunk in enumerate(_chunks(document)):
            ids += tokenizer(chunk, add_special_tokens=n == 0, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > CHUNK:
        cut = text.rfind("\n", start, start + CHUNK)
        stop = cut if cut > start else start + CHUNK
        yield text[start:stop]
        start = stop
    yield text[start:]


def draw(tokens: Tensor, count: int, length: int, seed: int = 0) -> Tensor:
    """`count` windows of `length` tokens without overlap, (count, length) int64, drawn by `seed`."""
    import torch

    if count < 1 or length < 2:
        raise CalibrationError(
            f"{count} sequences of {length} tokens is no calibration; give at least 1 of 2"
        )
    windows = len(tokens) // length
    if windows < count:
        raise CalibrationError(
            f"the calibration text has {len(tokens)} tokens, but {count} sequences of {length} need "
            f"{count * length}; give more text, or ask for at most {windows} sequences of this length"
        )
    chosen = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))[:count]
    return tokens[: windows * length].view(windows, length)[chosen]


def calibration_sequences(
    path: str | Path, tokenizer: Any, count: int = 128, length: int = 2048, seed: int = 0
) -> Tensor:
    """Read, tokenise and draw: (count, length) int64."""
    return draw(tokenize(read_documents(path), tokenizer), count, length, seed)
