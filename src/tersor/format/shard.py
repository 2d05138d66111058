"""Safetensors headers: read with every rule checked, written into room kept for them.

The safetensors library gives tensors but not their places in the file, and `plan`, `inspect`
and the streaming jobs need places without data. The format is half a page: 8 bytes of header
length (little-endian), a JSON object, the data. Checked here: length, JSON, no name twice,
known dtypes, ranges that fit shape and dtype and cover the data without hole or overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.format import strict_json
from tersor.format.constants import MAX_HEADER_BYTES
from tersor.format.dtypes import BITS, is_shape
from tersor.format.errors import BadHeader, BadRange

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Extent:
    """One stored tensor: dtype, shape, and the bytes [begin, end) of the file that hold it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


@dataclass(frozen=True)
class Shard:
    """A safetensors file as its header tells it; `tensors` in the order of their data."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Extent]

    def read(self, name: str) -> U8:
        """The bytes of a stored tensor, 1-D uint8."""
        extent = self.tensors[name]
        with self.path.open("rb", buffering=0) as file:
            file.seek(extent.begin)
            data = np.empty(extent.nbytes, np.uint8)
            view = data.data
            done = 0
            while done < extent.nbytes:
                got = file.readinto(view[done : done + (1 << 30)])
                if not got:
                    raise BadRange(
                        f"{self.path}: tensor {name!r}: the file ends early; was it cut off while open?"
                    )
                done += got
        return data


def read_shard(path: Path) -> Shard:
    """Read and check the header of the safetensors file at `path`."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
                raise BadHeader(
                    f"{path}: {size} bytes cannot hold a safetensors header of {length}; the file is cut off, "
                    f"damaged, or no safetensors file"
                )
            header = file.read(length)
    except OSError as error:
        raise BadHeader(f"{path}: cannot be read ({error.strerror})") from error
    return parse_header(header, size, path)


def parse_header(header: bytes, file_size: int, path: Path) -> Shard:
    """The shard that this header describes; `file_size` bounds its ranges, `path` names it in errors."""
    document = _parse_json(header, path)
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadHeader(f"{path}: __metadata__ must map strings to strings; the file is damaged")
    start = 8 + len(header)
    extents = {name: _parse_extent(name, value, start, path) for name, value in document.items()}
    ordered = dict(sorted(extents.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = start
    for name, extent in ordered.items():
        if extent.begin != at:
            what = "overlaps the tensor before it" if extent.begin < at else "leaves a hole before it"
            raise BadRange(f"{path}: tensor {name!r}: its data range {what}; the file is damaged")
        at = extent.end
    if at != file_size:
        raise BadRange(
            f"{path}: the header describes {at} bytes and the file has {file_size}; it is cut off or something was "
            f"appended. Copy or download it again"
        )
    return Shard(path, metadata, ordered)


def _parse_json(header: bytes, path: Path) -> dict[str, Any]:
    try:
        document = strict_json.loads(header.decode("utf-8"))
    except ValueError as error:
        raise BadHeader(
            f"{path}: the header is not JSON as it must be ({error}); the file is damaged"
        ) from error
    if not isinstance(document, dict):
        raise BadHeader(f"{path}: the header is not a JSON object; the file is damaged")
    return document


def _parse_extent(name: str, value: object, start: int, path: Path) -> Extent:
    where = f"{path}: tensor {name!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise BadHeader(
            f"{where}: its header entry must be dtype, shape and data_offsets; the file is damaged"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise BadHeader(
            f"{where}: dtype {dtype!r} is not one of safetensors'; is the file newer than tersor?"
        )
    if not is_shape(shape) or not _is_range(offsets):
        raise BadHeader(
            f"{where}: shape {shape!r} or data_offsets {offsets!r} make no sense; the file is damaged"
        )
    if 8 * (offsets[1] - offsets[0]) != BITS[dtype] * math.prod(shape):
        raise BadRange(
            f"{where}: {offsets[1] - offsets[0]} bytes do not hold {dtype} {shape}; the file is damaged"
        )
    return Extent(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_range(value: object) -> bool:
    """Whether `value` is [begin, end] as a data range must be."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
        and value[0] <= value[1]
    )


def dump_header(
    metadata: Mapping[str, str], tensors: Iterable[tuple[str, Extent]], room: int | None = None
) -> bytes:
    """Length prefix and JSON header; extents count from the data's start.

    With `room` the whole is padded by spaces (which safetensors allows) to exactly that many bytes.
    """
    document: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, e in tensors:
        document[name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    size = 8 + len(text)
    room = -(-size // 8) * 8 if room is None else room
    if size > room:
        raise ValueError(f"a header of {size} bytes does not fit the {room} kept for it")
    text += b" " * (room - size)
    return len(text).to_bytes(8, "little") + text
