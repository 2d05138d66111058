"""Checkpoints by hand: safetensors files written, read and edited without the code under test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

HUFFMAN_DTYPES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes per element


@dataclass(frozen=True)
class Tensor:
    """A tensor as safetensors sees it: dtype, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def gaussian_bytes(shape: Sequence[int], dtype: str = "BF16", seed: int = 0, scale: float = 0.02) -> U8:
    """Bytes of normally distributed elements; for float8 of bytes that are distributed about as unevenly."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(math.prod(shape), np.float32)
    if dtype == "F8_E4M3":
        code = np.clip(np.abs(x) * 8 + 40, 0, 126).astype(np.uint8)
        return code | (x < 0).astype(np.uint8) << 7
    x *= np.float32(scale)
    if dtype == "F32":
        return x.view(np.uint8)
    if dtype == "BF16":
        return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    half = x.astype(np.float16).view(np.uint16)
    return half.view(np.uint8) if dtype == "F16" else (half >> 8).astype(np.uint8)


def gaussian(shape: Sequence[int], dtype: str = "BF16", seed: int = 0) -> Tensor:
    """A tensor of normally distributed elements."""
    return Tensor(dtype, tuple(shape), gaussian_bytes(shape, dtype, seed).tobytes())


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file as the safetensors library writes it: tensors in this order, header padded to 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, t in tensors.items():
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + len(t.data)]}
        at += len(t.data)
    return join_file(header, b"".join(t.data for t in tensors.values()))


def join_file(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """Header (JSON, or bytes taken as they are) and data as one file."""
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file."""
    header, data = split_file(path.read_bytes())
    header.pop("__metadata__", None)
    return {
        name: Tensor(e["dtype"], tuple(e["shape"]), data[slice(*e["data_offsets"])])
        for name, e in header.items()
    }


def write_model(path: Path, shards: Sequence[Mapping[str, Tensor]], metadata: bool = True) -> Path:
    """A model directory with a config and one or several shards, as Transformers writes it."""
    path.mkdir(parents=True)
    meta = {"format": "pt"} if metadata else None
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (path / "tokenizer.json").write_text('{"a": 1}')
    if len(shards) == 1:
        (path / "model.safetensors").write_bytes(file_bytes(shards[0], meta))
        return path
    weight_map = {}
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        (path / file).write_bytes(file_bytes(tensors, meta))
        weight_map.update(dict.fromkeys(tensors, file))
    total = sum(len(t.data) for tensors in shards for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    """Change a JSON file: `edit` changes the document in place."""
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def edit_header(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change a safetensors header: `edit` changes the document in place; the data stays."""
    header, data = split_file(path.read_bytes())
    edit(header)
    path.write_bytes(join_file(header, data))


def edit_tensor(path: Path, name: str, edit: Callable[[bytearray], Any]) -> None:
    """Change the bytes of one stored tensor in place."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    part = content[8 + length + begin : 8 + length + end]
    edit(part)
    content[8 + length + begin : 8 + length + end] = part
    path.write_bytes(content)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a directory (or the one file), by relative name."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
