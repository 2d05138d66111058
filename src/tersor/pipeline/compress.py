"""`tersor compress`: a model in, a smaller model out, nothing lost, proven as it goes.

Shard by shard, tensor by tensor, in the order of the data. Reading the next tensors, hashing,
encoding on all cores and writing overlap:

    reader   | read t+1 ..                 |
    codec    | encode t   | decode t, compare |
    hasher   | SHA-256 of t                |
    writer   | write t-1                   |

Memory is bounded by a budget of two of the largest tensors and a little, whatever the model's
size. No tensor is written before it was decoded and compared with the original bit for bit.
A killed job resumes (`shard_writer`), and the output appears whole or not at all (`output`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor._version import __version__
from tersor.format.checkpoint import Checkpoint, open_checkpoint
from tersor.format.constants import CODEC_HUFFMAN, FORMAT_VERSION, MANIFEST_KEY, QUANT_METHOD
from tersor.format.errors import UsageError
from tersor.format.layout import stored_tensors
from tersor.format.manifest import TensorEntry, dump_manifest, parse_manifest
from tersor.format.shard import Extent, Shard, read_shard
from tersor.format.validate import is_compressed
from tersor.pipeline.output import Output, resumable
from tersor.pipeline.progress import OnProgress, Progress, silent
from tersor.pipeline.read_ahead import Budget, read_ahead
from tersor.pipeline.rewriting import open_output, publish
from tersor.pipeline.shard_writer import Part, ShardWriter, finished
from tersor.pipeline.source import local_path
from tersor.pipeline.stored_form import compressed_form, header_room

_SPARE_BYTES = 256 << 20  # budget beyond two of the largest tensors
_FOOTPRINT = 1.75  # a tensor in flight: its bytes, and at most 0.75 of them compressed


@dataclass(frozen=True)
class CompressResult:
    """What a job made: where, and the totals over all tensors."""

    path: Path
    tensors: int
    compressed_tensors: int
    resumed_tensors: int
    original_bytes: int
    stored_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Stored over original bytes."""
        return self.stored_bytes / self.original_bytes if self.original_bytes else 1.0


def compress(
    model: str | Path, out: str | Path, *, revision: str | None = None, on_progress: OnProgress = silent
) -> CompressResult:
    """Compress the bf16, fp16, fp32 or fp8 model at `model` (directory, .safetensors file or Hub id) to `out`.

    Raises OutputExists, UsageError, a FormatError for a damaged input, Interrupted when writing
    fails half-way (run again to resume). Nothing appears at `out` before everything is proven.
    """
    started = time.monotonic()
    source = open_checkpoint(local_path(str(model), revision))
    if is_compressed(source):
        raise UsageError(f"{source.path}: is compressed already; `tersor decompress` gives the original back")
    output = open_output("compress", source, Path(out))
    totals = _Totals(source.nbytes, on_progress)
    with resumable(output):
        stored = {shard.path.name: _compress_shard(shard, output, source, totals) for shard in source.shards}
        publish(output, source, _config(source.config), stored, totals.stored_bytes)
    return CompressResult(
        output.final,
        totals.tensors,
        totals.compressed,
        totals.resumed,
        totals.done_bytes,
        totals.stored_bytes,
        time.monotonic() - started,
    )


class _Totals:
    """Counters of a running job."""

    def __init__(self, total_bytes: int, on_progress: OnProgress) -> None:
        self.total_bytes = total_bytes
        self.on_progress = on_progress
        self.tensors = self.compressed = self.resumed = 0
        self.done_bytes = self.stored_bytes = 0

    def count(self, name: str, entry: TensorEntry, original: int, stored: int, resumed: bool) -> None:
        """Count one tensor and tell about it."""
        self.tensors += 1
        self.compressed += entry.codec == CODEC_HUFFMAN
        self.resumed += resumed
        self.done_bytes += original
        self.stored_bytes += stored
        self.on_progress(Progress(name, self.done_bytes, self.total_bytes, self.stored_bytes))


def _config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    ours: dict[str, Any] = {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "tersor_version": __version__,
    }
    original = (config or {}).get("quantization_config")
    if original is not None:
        ours["original"] = original
    return {**(config or {}), "quantization_config": ours}


def _compress_shard(shard: Shard, output: Output, source: Checkpoint, totals: _Totals) -> list[str]:
    """Compress one shard, or take up where an earlier run was; returns the names it stores."""
    target = output.partial / shard.path.name
    if finished(target):
        done = read_shard(target)
        entries = parse_manifest(done.metadata, str(target))
        _count_resumed(shard, entries, done.tensors, totals)
        return list(done.tensors)
    writer = ShardWriter(target, output.identity, header_room(shard))
    try:
        _count_resumed(shard, _described(writer), writer.extents, totals)
        _write_rest(shard, writer, source, totals)
        writer.finish({**shard.metadata, MANIFEST_KEY: dump_manifest(_described(writer))})
    finally:
        writer.close()
    return list(writer.extents)


def _write_rest(shard: Shard, writer: ShardWriter, source: Checkpoint, totals: _Totals) -> None:
    """Compress and write the tensors that `writer` does not hold yet; the drawing at the top of the module."""
    largest = max((e.nbytes for s in source.shards for e in s.tensors.values()), default=0)
    budget = Budget(2 * largest + _SPARE_BYTES)
    names = {name for _, name in source.tensors()}
    todo = [(shard, name, _cost(e)) for name, e in shard.tensors.items() if name not in writer.entries]
    with ThreadPoolExecutor(1, "tersor-hash") as hasher, ThreadPoolExecutor(1, "tersor-write") as scribe:
        previous: Future[None] | None = None
        for _, name, data in read_ahead(todo, budget):
            extent = shard.tensors[name]
            entry, parts = compressed_form(name, extent, data, names, hasher)
            if previous is not None:
                previous.result()
            previous = scribe.submit(_write, writer, name, entry, parts, budget, _cost(extent))
            stored = sum(buffer.nbytes for part in parts for buffer in part.data)
            totals.count(name, entry, extent.nbytes, stored, resumed=False)
            del data, parts
        if previous is not None:
            previous.result()


def _write(
    writer: ShardWriter, name: str, entry: TensorEntry, parts: list[Part], budget: Budget, cost: int
) -> None:
    try:
        writer.add(name, entry, parts)
    finally:
        budget.give(cost)


def _cost(extent: Extent) -> int:
    return int(extent.nbytes * _FOOTPRINT)


def _described(writer: ShardWriter) -> dict[str, TensorEntry]:
    return {name: entry for name, entry in writer.entries.items() if entry is not None}


def _count_resumed(
    shard: Shard, entries: Mapping[str, TensorEntry], extents: Mapping[str, Extent], totals: _Totals
) -> None:
    """Count what an earlier run did."""
    for name, entry in entries.items():
        parts = [part.name for part in stored_tensors(name, entry)]
        stored = sum(extents[part].nbytes for part in parts if part in extents)
        totals.count(name, entry, shard.tensors[name].nbytes, stored, resumed=True)
