"""Write a safetensors shard piece by piece, so that a kill at any moment loses one tensor at most.

Beside the growing file `NAME.part` lies a journal, one JSON line per finished tensor: its
manifest entry, the extents of its parts and their CRC-32, behind the CRC-32 of the line itself.
A later run with the same identity reads the journal, checks each CRC, drops what follows the
first line that does not hold, and goes on from there. So a resumed shard has the bytes of an uninterrupted one: the
order of tensors, the room kept for the header and the encoder are all deterministic.

    NAME.part     | room for the header | tensor | tensor | ...
    NAME.journal  | identity | line per tensor ...
    NAME          appears by rename, complete, flushed to the disk

The header's size is not known before the last tensor is, so room for the largest possible one
is kept and the rest filled with spaces, which safetensors allows.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tersor.format.manifest import TensorEntry, dump_entry, parse_entry
from tersor.format.shard import Extent, dump_header

Buffers = Iterable[NDArray[np.uint8]]


@dataclass(frozen=True)
class Part:
    """One array to store: its name, dtype, shape and its bytes in pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Buffers


class ShardWriter:
    """One shard being written; `entries` are the tensors it holds already, found intact on opening."""

    def __init__(self, path: Path, identity: str, room: int) -> None:
        """Open or resume `path`; `identity` must be that of the interrupted job, `room` is kept for the header."""
        self.path = path
        self.room = room
        self.entries: dict[str, TensorEntry | None] = {}
        self.extents: dict[str, Extent] = {}
        self._data_path = path.with_name(path.name + ".part")
        self._journal_path = _journal_path(path)
        self._end = 0  # bytes of data so far
        kept = self._recover(identity)
        with ExitStack() as opened:  # closes again what is open when the next step fails
            self._journal = opened.enter_context(self._start_journal(identity, kept))
            self._data_path.touch()
            self._data = opened.enter_context(self._data_path.open("r+b"))
            self._data.truncate(self.room + self._end)
            self._data.seek(self.room + self._end)
            opened.pop_all()

    @property
    def nbytes(self) -> int:
        """Bytes of data written so far, header not counted."""
        return self._end

    def add(self, name: str, entry: TensorEntry | None, parts: Iterable[Part]) -> None:
        """Append the parts of tensor `name` and note them in the journal."""
        written: list[tuple[str, Extent, int]] = []
        begin = self._end
        for part in parts:
            end, crc = begin, 0
            for buffer in part.data:
                self._data.write(buffer.data)
                crc = zlib.crc32(buffer.data, crc)
                end += buffer.nbytes
            written.append((part.name, Extent(part.dtype, part.shape, begin, end), crc))
            begin = end
        self._data.flush()
        self._journal.write(_journal_line(name, entry, written))
        self._journal.flush()
        self._accept(name, entry, written)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header, flush to the disk and rename into place."""
        header = dump_header(metadata, self.extents.items(), self.room)
        self._data.seek(0)
        self._data.write(header)
        self._data.flush()
        os.fsync(self._data.fileno())
        self.close()
        self._data_path.replace(self.path)
        self._journal_path.unlink()

    def close(self) -> None:
        """Close the files; what was written stays for a resume."""
        try:
            self._data.close()
        finally:
            self._journal.close()

    def _accept(self, name: str, entry: TensorEntry | None, written: list[tuple[str, Extent, int]]) -> None:
        self.entries[name] = entry
        for part, extent, _ in written:
            self.extents[part] = extent
            self._end = extent.end

    def _recover(self, identity: str) -> list[bytes]:
        """Accept the journal's lines that hold; returns them."""
        try:
            lines = self._journal_path.read_bytes().splitlines(keepends=True)
            data = self._data_path.open("rb")
        except OSError:
            return []
        kept: list[bytes] = []
        with data:
            if not lines or lines[0] != _identity_line(identity, self.room):
                return []
            for line in lines[1:]:
                record = _parse_line(line)
                if record is None or record[2][0][1].begin != self._end or not self._holds(data, record[2]):
                    break
                self._accept(*record)
                kept.append(line)
        return kept

    def _holds(self, data: IO[bytes], written: list[tuple[str, Extent, int]]) -> bool:
        for _, extent, crc in written:
            data.seek(self.room + extent.begin)
            left, found = extent.nbytes, 0
            while left:
                block = data.read(min(left, 1 << 24))
                if not block:
                    return False
                found = zlib.crc32(block, found)
                left -= len(block)
            if found != crc:
                return False
        return True

    def _start_journal(self, identity: str, kept: list[bytes]) -> IO[bytes]:
        fresh = self._journal_path.with_name(self._journal_path.name + ".new")
        with fresh.open("wb") as journal:
            journal.writelines([_identity_line(identity, self.room), *kept])
        fresh.replace(self._journal_path)
        return self._journal_path.open("ab")


def finished(path: Path) -> bool:
    """Whether an earlier run finished the shard `path`; its journal, which a kill may have left, is removed."""
    if not path.exists():
        return False
    _journal_path(path).unlink(missing_ok=True)
    return True


def _journal_path(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _identity_line(identity: str, room: int) -> bytes:
    return _sealed({"identity": identity, "room": room})


def _journal_line(name: str, entry: TensorEntry | None, written: list[tuple[str, Extent, int]]) -> bytes:
    parts = [[part, e.dtype, list(e.shape), e.begin, e.end, crc] for part, e, crc in written]
    return _sealed({"name": name, "entry": dump_entry(entry) if entry else None, "parts": parts})


def _sealed(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse_line(line: bytes) -> tuple[str, TensorEntry | None, list[tuple[str, Extent, int]]] | None:
    """A journal line read back; None if a kill cut it off, or the disk damaged it."""
    text = line[9:-1]
    if line != b"%08x %s\n" % (zlib.crc32(text), text):
        return None
    record: dict[str, Any] = json.loads(text)
    name, entry = record["name"], None
    if record["entry"]:
        entry = parse_entry(name, record["entry"], "journal")
    parts = [
        (part, Extent(dtype, tuple(shape), b, e), crc) for part, dtype, shape, b, e, crc in record["parts"]
    ]
    return name, entry, parts
