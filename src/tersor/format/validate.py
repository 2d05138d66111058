"""Every rule of FORMAT.md that headers can show, checked in one place.

`open_compressed` is how all of tersor opens a compressed model. What only data can show (books,
offsets, tiles, hashes) is checked where data is decoded: `tersor.codec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tersor.format.checkpoint import Checkpoint
from tersor.format.constants import CODEC_RAW, FORMAT_VERSION, MANIFEST_KEY, QUANT_METHOD
from tersor.format.errors import (
    BadManifest,
    ExtraTensor,
    MissingGuard,
    MissingTensor,
    NotTersor,
    UnknownVersion,
    WrongDtype,
    WrongShape,
)
from tersor.format.layout import StoredTensor, stored_tensors
from tersor.format.manifest import TensorEntry, parse_manifest
from tersor.format.shard import Extent, Shard


@dataclass(frozen=True)
class Compressed:
    """A compressed model whose headers keep every rule: its files and its merged manifest."""

    checkpoint: Checkpoint
    entries: Mapping[str, TensorEntry]
    shard_of: Mapping[str, Shard]  # stored name -> the shard that holds it

    def stored_bytes(self, name: str) -> int:
        """Bytes that tensor `name` takes here, all its parts counted."""
        parts = (part.name for part in stored_tensors(name, self.entries[name]))
        return sum(self.shard_of[part].tensors[part].nbytes for part in parts if part in self.shard_of)

    def in_file_order(self) -> list[tuple[str, TensorEntry]]:
        """The manifest in the order of the data, so that a pass over it reads forward."""
        places = {name: i for i, (_, name) in enumerate(self.checkpoint.tensors())}
        return sorted(self.entries.items(), key=lambda item: places[stored_tensors(*item)[-1].name])

    def where(self, name: str) -> str:
        """File and tensor, for messages."""
        last = stored_tensors(name, self.entries[name])[-1].name
        return f"{self.shard_of[last].path}: tensor {name!r}"


def is_compressed(checkpoint: Checkpoint) -> bool:
    """Whether this looks like one of ours, whole or broken."""
    named = (checkpoint.config or {}).get("quantization_config")
    return (isinstance(named, dict) and named.get("quant_method") == QUANT_METHOD) or any(
        MANIFEST_KEY in shard.metadata for shard in checkpoint.shards
    )


def check_compressed(checkpoint: Checkpoint) -> Compressed:
    """Check a checkpoint against FORMAT.md sections 1 and 2; raises the error that bears the rule's name."""
    _check_config(checkpoint)
    entries: dict[str, TensorEntry] = {}
    stored: dict[str, Extent] = {}
    shard_of: dict[str, Shard] = {}
    for shard in checkpoint.shards:
        for name, entry in parse_manifest(shard.metadata, str(shard.path)).items():
            if entries.setdefault(name, entry) != entry:
                raise BadManifest(f"{shard.path}: tensor {name!r} is described otherwise in another shard")
        for name, extent in shard.tensors.items():
            stored[name] = extent
            shard_of[name] = shard
    guarded = _check_stored(entries, stored, shard_of, checkpoint)
    if not guarded and any(entry.codec != CODEC_RAW for entry in entries.values()):
        raise MissingGuard(
            f"{checkpoint.path}: no guard tensor, so software without tersor could load random weights in silence; "
            f"compress the original model again"
        )
    return Compressed(checkpoint, entries, shard_of)


def _check_config(checkpoint: Checkpoint) -> None:
    if checkpoint.is_file:
        if not is_compressed(checkpoint):
            raise NotTersor(
                f"{checkpoint.path}: is not compressed by tersor; `tersor compress` makes such a file"
            )
        return
    named = (checkpoint.config or {}).get("quantization_config")
    if not isinstance(named, dict) or named.get("quant_method") != QUANT_METHOD:
        raise NotTersor(
            f"{checkpoint.path}: config.json has no quantization_config of tersor; this is not a compressed model "
            f"(`tersor compress` makes one)"
        )
    if type(named.get("format_version")) is not int or named["format_version"] != FORMAT_VERSION:
        raise UnknownVersion(
            f"{checkpoint.path}: config.json says format version {named.get('format_version')!r}, and this tersor "
            f"reads version {FORMAT_VERSION}; install a newer tersor"
        )


def _check_stored(
    entries: Mapping[str, TensorEntry],
    stored: Mapping[str, Extent],
    shard_of: Mapping[str, Shard],
    checkpoint: Checkpoint,
) -> bool:
    """Compare what the manifest declares with what is stored; returns whether a guard was seen."""
    declared: set[str] = set()
    guarded = False
    for name, entry in entries.items():
        for part in stored_tensors(name, entry):
            if part.name in declared:
                raise BadManifest(
                    f"{checkpoint.path}: tensor {name!r}: its part {part.name!r} belongs to another too"
                )
            declared.add(part.name)
            extent = stored.get(part.name)
            if extent is None:
                if part.optional:
                    continue
                raise MissingTensor(
                    f"{checkpoint.path}: tensor {name!r}: {part.name!r} is in no shard; download again"
                )
            _check_part(part, extent, f"{shard_of[part.name].path}: tensor {name!r}")
            guarded |= part.optional
    extra = stored.keys() - declared
    if extra:
        raise ExtraTensor(
            f"{shard_of[min(extra)].path}: tensor {min(extra)!r} is in no manifest; it does not belong there"
        )
    return guarded


def _check_part(part: StoredTensor, extent: Extent, where: str) -> None:
    if extent.dtype != part.dtype:
        raise WrongDtype(f"{where}: {part.name!r} is stored as {extent.dtype}, it must be {part.dtype}")
    fits = len(extent.shape) == len(part.shape) and all(
        want is None or have == want for have, want in zip(extent.shape, part.shape, strict=True)
    )
    if not fits:
        raise WrongShape(
            f"{where}: {part.name!r} has shape {list(extent.shape)}, it must be {list(part.shape)}"
        )
