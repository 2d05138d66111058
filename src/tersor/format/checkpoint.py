"""A model on disk: a directory of shards, perhaps with an index, or a single file.

Opening reads headers and small JSON files only; what is stored where is known afterwards, and
index and shards agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.format.errors import BadHeader, IndexMismatch, MissingShard, UsageError
from tersor.format.shard import Shard, read_shard

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"

# Weights in other formats are not carried over: they would undo the compression.
_OTHER_WEIGHTS = {
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".safetensors",
    ".npz",
    ".part",
}


@dataclass(frozen=True)
class Checkpoint:
    """A model's files. `path` is its directory or its one file; `index` the index's `metadata`, if there is one."""

    path: Path
    shards: tuple[Shard, ...]
    config: Mapping[str, Any] | None
    index: Mapping[str, Any] | None

    @property
    def is_file(self) -> bool:
        """Whether the model is a single file rather than a directory."""
        return self.path.is_file()

    def tensors(self) -> Iterator[tuple[Shard, str]]:
        """Every stored tensor with its shard, in the order of the data."""
        return ((shard, name) for shard in self.shards for name in shard.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(extent.nbytes for shard in self.shards for extent in shard.tensors.values())

    def other_files(self) -> list[Path]:
        """Files to carry over (tokenizer and so on), relative to the directory: no weights, index or config."""
        return [f for f in self._files() if f.suffix not in _OTHER_WEIGHTS]

    def left_out(self) -> list[Path]:
        """Weights beside the model's own shards, relative to the directory: nothing reads or copies them."""
        own = {shard.path.name for shard in self.shards}
        return [f for f in self._files() if f.suffix in _OTHER_WEIGHTS and str(f) not in own]

    def _files(self) -> list[Path]:
        """Every file of the directory, relative to it, but the config, indices and hidden folders."""
        if self.is_file:
            return []
        files = (p.relative_to(self.path) for p in sorted(self.path.rglob("*")) if p.is_file())
        return [
            f
            for f in files
            if not f.name.endswith(".index.json")
            and f != Path(CONFIG)
            and not any(part.startswith(".") for part in f.parts[:-1])
        ]


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at `path`, a directory or a .safetensors file; index and shards are checked to agree."""
    if path.is_file():
        return Checkpoint(path, (read_shard(path),), None, None)
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such file or directory")
    config = _read_json(path / CONFIG) if (path / CONFIG).exists() else None
    index_path = _index_path(path)
    if index_path is None:
        return Checkpoint(path, (read_shard(_only_shard(path)),), config, None)
    index = _read_json(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise IndexMismatch(f"{index_path}: no weight_map from names to files; the index is damaged")
    shards = tuple(_read_listed(index_path, name) for name in sorted(set(weight_map.values())))
    _check_index(index_path, weight_map, shards)
    metadata = index.get("metadata")
    return Checkpoint(path, shards, config, metadata if isinstance(metadata, dict) else {})


def _index_path(path: Path) -> Path | None:
    if (path / "model.safetensors").exists():  # where both are there, Transformers takes the file, too
        return None
    if (path / INDEX).exists():
        return path / INDEX
    found = sorted(path.glob("*.safetensors.index.json"))
    if len(found) > 1:
        raise UsageError(
            f"{path}: several indices ({', '.join(f.name for f in found)}); keep one model in a directory"
        )
    return found[0] if found else None


def _only_shard(path: Path) -> Path:
    if (path / "model.safetensors").exists():
        return path / "model.safetensors"
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{path}: {len(found)} safetensors files and no index; name one of them, or add {INDEX}"
        )
    if any(path.glob("*.bin")) or any(path.glob("*.pth")):
        raise UsageError(
            f"{path}: weights in PyTorch's pickle format only. Load and save the model once with Transformers "
            f"(save_pretrained writes safetensors), then try again"
        )
    raise UsageError(f"{path}: no .safetensors files; is this a model directory?")


def _read_listed(index_path: Path, name: str) -> Shard:
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise IndexMismatch(
            f"{index_path}: {name!r} is no plain .safetensors file name; the index is not to be trusted"
        )
    if not (index_path.parent / name).is_file():
        raise MissingShard(
            f"{index_path.parent / name}: the index lists this shard and it is not there; download it again"
        )
    return read_shard(index_path.parent / name)


def _check_index(index_path: Path, weight_map: Mapping[str, str], shards: tuple[Shard, ...]) -> None:
    stored: dict[str, str] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in stored:
                raise IndexMismatch(
                    f"{shard.path}: tensor {name!r} is also in {stored[name]}; keep one of them"
                )
            stored[name] = shard.path.name
    for name, file in weight_map.items():
        if stored.get(name) != file:
            raise IndexMismatch(
                f"{index_path}: tensor {name!r} should be in {file}, and is in {stored.get(name, 'no shard')}"
            )
    extra = stored.keys() - weight_map.keys()
    if extra:
        raise IndexMismatch(
            f"{index_path}: does not list tensor {min(extra)!r}, which {stored[min(extra)]} holds"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadHeader(f"{path}: cannot be read as JSON ({error}); the file is damaged") from error
    if not isinstance(document, dict):
        raise BadHeader(f"{path}: is not a JSON object; the file is damaged")
    return document
