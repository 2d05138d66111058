"""Writing a compressed checkpoint, shard by shard and tensor by tensor, in the order of the data.

Reading the next tensors, hashing, encoding on all cores and writing overlap:

    reader   | read t+1 ..                 |
    codec    | encode t   | decode t, compare |
    hasher   | SHA-256 of t                |
    writer   | write t-1                   |

Memory is bounded by a budget of two of the largest tensors and a little, whatever the model's
size. A tensor that was quantised before takes that form; every other one is stored without loss,
and none of these is written before it was decoded and compared with the original bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tersor._version import __version__
from tersor.codec.quantized.matrix import Bits
from tersor.format.checkpoint import Checkpoint
from tersor.format.constants import CODEC_RAW, FORMAT_VERSION, MANIFEST_KEY, QUANT_METHOD
from tersor.format.layout import stored_tensors
from tersor.format.manifest import TensorEntry, dump_manifest, parse_manifest
from tersor.format.shard import Extent, Shard, read_shard
from tersor.pipeline.output import Output
from tersor.pipeline.progress import OnProgress, Progress
from tersor.pipeline.read_ahead import Budget, read_ahead
from tersor.pipeline.shard_writer import Part, ShardWriter, finished
from tersor.pipeline.stored_form import Matrices, compressed_form, header_room, quantized_form, split_bits

_SPARE_BYTES = 256 << 20  # budget beyond two of the largest tensors
_FOOTPRINT = 1.75  # a tensor in flight: its bytes, and at most 0.75 of them compressed


class Totals:
    """Counters of a running job."""

    def __init__(self, total_bytes: int, on_progress: OnProgress) -> None:
        self.total_bytes = total_bytes
        self.on_progress = on_progress
        self.tensors = self.compressed = self.quantized = self.resumed = 0
        self.done_bytes = self.stored_bytes = 0
        self.bits = Bits(0, 0, 0, 0)  # of quantised tensors

    def count(
        self, name: str, entry: TensorEntry, original: int, sizes: Mapping[str, int], resumed: bool
    ) -> None:
        """Count one tensor, whose parts have these sizes in bytes, and tell about it."""
        self.tensors += 1
        self.compressed += entry.codec != CODEC_RAW
        self.quantized += entry.parameters is not None
        self.resumed += resumed
        self.done_bytes += original
        self.stored_bytes += sum(sizes.values())
        if entry.parameters is not None:
            self.bits += split_bits(name, entry, sizes)
        self.on_progress(Progress(name, self.done_bytes, self.total_bytes, self.stored_bytes))


def config_of(config: Mapping[str, Any] | None, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The compressed model's config.json; `recorded` is what else it shall say of how it was made."""
    ours: dict[str, Any] = {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "tersor_version": __version__,
        **(recorded or {}),
    }
    original = (config or {}).get("quantization_config")
    if original is not None:
        ours["original"] = original
    return {**(config or {}), "quantization_config": ours}


def write_shard(
    shard: Shard, output: Output, source: Checkpoint, quantized: Matrices, totals: Totals
) -> list[str]:
    """Write one shard compressed, or take up where an earlier run was; returns the names it stores."""
    target = output.partial / shard.path.name
    if finished(target):
        done = read_shard(target)
        entries = parse_manifest(done.metadata, str(target))
        _count_resumed(shard, entries, done.tensors, totals)
        return list(done.tensors)
    writer = ShardWriter(target, output.identity, header_room(shard, quantized))
    try:
        _count_resumed(shard, _described(writer), writer.extents, totals)
        _write_rest(shard, writer, source, quantized, totals)
        writer.finish({**shard.metadata, MANIFEST_KEY: dump_manifest(_described(writer))})
    finally:
        writer.close()
    return list(writer.extents)


def _write_rest(
    shard: Shard, writer: ShardWriter, source: Checkpoint, quantized: Matrices, totals: Totals
) -> None:
    """Write the tensors that `writer` does not hold yet; the drawing at the top of the module."""
    largest = max((e.nbytes for s in source.shards for e in s.tensors.values()), default=0)
    budget = Budget(2 * largest + _SPARE_BYTES)
    names = {name for _, name in source.tensors()}
    todo = [(shard, name, _cost(e)) for name, e in shard.tensors.items() if name not in writer.entries]
    with ThreadPoolExecutor(1, "tersor-hash") as hasher, ThreadPoolExecutor(1, "tersor-write") as scribe:
        previous: Future[None] | None = None
        for _, name, data in read_ahead(todo, budget):
            extent = shard.tensors[name]
            if name in quantized:
                entry, parts = quantized_form(name, extent, quantized[name])
            else:
                entry, parts = compressed_form(name, extent, data, names, hasher)
            if previous is not None:
                previous.result()
            previous = scribe.submit(_write, writer, name, entry, parts, budget, _cost(extent))
            sizes = {part.name: sum(buffer.nbytes for buffer in part.data) for part in parts}
            totals.count(name, entry, extent.nbytes, sizes, resumed=False)
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
    shard: Shard, entries: Mapping[str, TensorEntry], extents: Mapping[str, Extent], totals: Totals
) -> None:
    """Count what an earlier run did."""
    for name, entry in entries.items():
        parts = [part.name for part in stored_tensors(name, entry)]
        sizes = {part: extents[part].nbytes for part in parts if part in extents}
        totals.count(name, entry, shard.tensors[name].nbytes, sizes, resumed=True)
