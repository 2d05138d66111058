"""`tersor decompress`: a plain checkpoint back, byte for byte the original per tensor, hashes checked on the way.

Of tensors that were quantised the original is gone; what comes back are the weights the model computes with.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.codec.proof import strips
from tersor.codec.quantized.dequantize import weight_bytes
from tersor.codec.quantized.parts import from_parts
from tersor.codec.stored import read_packed, read_parts
from tersor.format.checkpoint import open_checkpoint
from tersor.format.constants import CODEC_HUFFMAN, MANIFEST_KEY
from tersor.format.errors import HashMismatch
from tersor.format.layout import stored_tensors
from tersor.format.manifest import TensorEntry
from tersor.format.shard import Extent, Shard, dump_header
from tersor.format.validate import Compressed, check_compressed
from tersor.pipeline.output import Output, resumable
from tersor.pipeline.progress import OnProgress, Progress, silent
from tersor.pipeline.rewriting import open_output, publish
from tersor.pipeline.shard_writer import Part, ShardWriter, finished
from tersor.pipeline.source import local_path

U8 = NDArray[np.uint8]

_STEP_BYTES = 32 << 20  # of a raw tensor, written at a time


@dataclass(frozen=True)
class DecompressResult:
    """What a job made: where, and the totals over all tensors."""

    path: Path
    tensors: int
    quantized: int
    original_bytes: int
    stored_bytes: int
    seconds: float


def decompress(model: str | Path, out: str | Path, *, on_progress: OnProgress = silent) -> DecompressResult:
    """Write the model that was compressed to `model` to `out`: same names, dtypes, shapes and bytes.

    Streams tensor by tensor and resumes like `compress`. A tensor whose SHA-256 does not match
    raises HashMismatch, and nothing appears at `out`.
    """
    started = time.monotonic()
    compressed = check_compressed(open_checkpoint(local_path(str(model))))
    source = compressed.checkpoint
    entries = _entries_by_shard(compressed)
    total = sum(entry.nbytes for entry in compressed.entries.values())
    done = stored = 0
    output = open_output("decompress", source, Path(out))
    with resumable(output):
        for shard in source.shards:
            for name in _restore_shard(compressed, shard, entries[shard.path.name], output):
                done += compressed.entries[name].nbytes
                stored += compressed.stored_bytes(name)
                on_progress(Progress(name, done, total, stored))
        publish(output, source, _config(source.config), entries, total)
    quantized = sum(entry.parameters is not None for entry in compressed.entries.values())
    seconds = time.monotonic() - started
    return DecompressResult(output.final, len(compressed.entries), quantized, total, stored, seconds)


def _entries_by_shard(model: Compressed) -> dict[str, dict[str, TensorEntry]]:
    """For each shard's file name the tensors that go there: those whose last part it holds."""
    entries: dict[str, dict[str, TensorEntry]] = {shard.path.name: {} for shard in model.checkpoint.shards}
    for name, entry in model.in_file_order():
        last = stored_tensors(name, entry)[-1].name
        entries[model.shard_of[last].path.name][name] = entry
    return entries


def _config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    original = dict(config or {})
    ours = original.pop("quantization_config", {})
    if "original" in ours:
        original["quantization_config"] = ours["original"]
    return original


def _restore_shard(
    model: Compressed, shard: Shard, entries: Mapping[str, TensorEntry], output: Output
) -> Iterator[str]:
    """Write one shard in its original form; yields each tensor's name when it is done."""
    target = output.partial / shard.path.name
    if finished(target):
        yield from entries
        return
    metadata = {key: value for key, value in shard.metadata.items() if key != MANIFEST_KEY}
    at = 0
    extents: dict[str, Extent] = {}
    for name, entry in entries.items():
        extents[name] = Extent(entry.dtype, entry.shape, at, at + entry.nbytes)
        at += entry.nbytes
    writer = ShardWriter(target, output.identity, len(dump_header(metadata, extents.items())))
    try:
        yield from list(writer.entries)
        for name, entry in entries.items():
            if name not in writer.entries:
                data = _checked(_pieces(model, name, entry), entry, model.where(name))
                writer.add(name, None, [Part(name, entry.dtype, entry.shape, data)])
                yield name
        writer.finish(metadata)
    finally:
        writer.close()


def _pieces(model: Compressed, name: str, entry: TensorEntry) -> Iterator[U8]:
    if entry.codec == CODEC_HUFFMAN:
        for _, _, piece in strips(read_packed(model, name, entry), model.where(name)):
            yield piece
    elif entry.parameters is not None:
        parts = read_parts(model, name, entry)
        yield from weight_bytes(from_parts(entry, parts, model.where(name)))
    else:
        data = model.shard_of[name].read(name)
        for start in range(0, data.size, _STEP_BYTES):
            yield data[start : start + _STEP_BYTES]


def _checked(pieces: Iterator[U8], entry: TensorEntry, where: str) -> Iterator[U8]:
    """Pass the pieces on; after the last, raise unless they had the stated hash (so it is not journaled)."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.data)
        yield piece
    if digest.hexdigest() != entry.sha256:
        raise HashMismatch(
            f"{where}: decodes to SHA-256 {digest.hexdigest()[:16]}…, the manifest says {entry.sha256[:16]}…; the file "
            f"is damaged, copy or download it again"
        )
