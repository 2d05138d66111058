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

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor._version import __version__
from tersor.codec import Packed, encode
from tersor.codec.proof import equals
from tersor.format.checkpoint import INDEX, Checkpoint, open_checkpoint
from tersor.format.constants import CODEC_HUFFMAN, CODEC_RAW, FORMAT_VERSION, MANIFEST_KEY, QUANT_METHOD
from tersor.format.dtypes import RAW_BYTES
from tersor.format.errors import UsageError, VerificationError
from tersor.format.layout import BOOK, OFFSETS, TILES, stored_tensors
from tersor.format.manifest import TensorEntry, dump_manifest, parse_manifest
from tersor.format.shard import Extent, Shard, dump_header, read_shard
from tersor.format.validate import is_compressed
from tersor.pipeline.output import Output, resumable
from tersor.pipeline.progress import OnProgress, Progress, silent
from tersor.pipeline.read_ahead import Budget, read_ahead
from tersor.pipeline.shard_writer import Part, ShardWriter, finished
from tersor.pipeline.source import local_path

U8 = NDArray[np.uint8]

MIN_ELEMENTS = 4096  # below this, tables and index eat what coding saves
_SPARE_BYTES = 256 << 20  # budget beyond two of the largest tensors
_FOOTPRINT = 1.75  # a tensor in flight: its bytes, and at most 0.75 of them compressed
_WIDEST = 10**18  # stands for any size or offset when room for a header is reckoned


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
    final = Path(out)
    _check_request(source, final)
    output = Output(final, _job(source))
    with resumable(output):
        names = source.other_files()
        totals = _Totals(source.nbytes, on_progress)
        for shard in source.shards:
            _compress_shard(shard, output, source, totals)
        index_map = {
            part: shard.path.name for shard in source.shards for part in totals.stored[shard.path.name]
        }
        if source.is_file:
            output.finish_file(source.path.name)
        else:
            output.carry_over(source.path, names)
            index = None
            if source.index is not None:
                metadata = {**source.index, "total_size": totals.stored_bytes}
                index = {"metadata": metadata, "weight_map": dict(sorted(index_map.items()))}
            output.finish_directory(_config(source.config), index, INDEX)
    return CompressResult(
        final,
        totals.tensors,
        totals.compressed,
        totals.resumed,
        totals.done_bytes,
        totals.stored_bytes,
        time.monotonic() - started,
    )


def wants_compression(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether the huffman codec is tried on a tensor (FORMAT.md section 4)."""
    return dtype in RAW_BYTES and len(shape) >= 2 and math.prod(shape) >= MIN_ELEMENTS


class _Totals:
    """Counters of a running job."""

    def __init__(self, total_bytes: int, on_progress: OnProgress) -> None:
        self.total_bytes = total_bytes
        self.on_progress = on_progress
        self.tensors = self.compressed = self.resumed = 0
        self.done_bytes = self.stored_bytes = 0
        self.stored: dict[str, list[str]] = {}  # shard file name -> stored names

    def count(self, name: str, entry: TensorEntry, original: int, stored: int, resumed: bool) -> None:
        """Count one tensor and tell about it."""
        self.tensors += 1
        self.compressed += entry.codec == CODEC_HUFFMAN
        self.resumed += resumed
        self.done_bytes += original
        self.stored_bytes += stored
        self.on_progress(Progress(name, self.done_bytes, self.total_bytes, self.stored_bytes))


def _check_request(source: Checkpoint, final: Path) -> None:
    if is_compressed(source):
        raise UsageError(f"{source.path}: is compressed already; `tersor decompress` gives the original back")
    if source.is_file and final.suffix != ".safetensors":
        raise UsageError(
            f"{final}: a single file is compressed to a single file; give it a name in .safetensors"
        )
    if not source.is_file and final.resolve().is_relative_to(source.path.resolve()):
        raise UsageError(f"{final}: lies inside the model it is made from; choose an output beside it")


def _job(source: Checkpoint) -> Mapping[str, Any]:
    shards = [[s.path.name, s.path.stat().st_size, s.path.stat().st_mtime_ns] for s in source.shards]
    return {
        "job": "compress",
        "format": FORMAT_VERSION,
        "source": str(source.path.resolve()),
        "shards": shards,
    }


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


def _compress_shard(shard: Shard, output: Output, source: Checkpoint, totals: _Totals) -> None:
    """Compress one shard, or take up its interrupted state."""
    target = output.partial / shard.path.name
    if finished(target):
        _count_finished(shard, target, totals)
        return
    largest = max((e.nbytes for s in source.shards for e in s.tensors.values()), default=0)
    budget = Budget(2 * largest + _SPARE_BYTES)
    writer = ShardWriter(target, output.identity, _header_room(shard))
    try:
        for name, entry in writer.entries.items():
            assert entry is not None
            stored = sum(
                writer.extents[p.name].nbytes for p in stored_tensors(name, entry) if p.name in writer.extents
            )
            totals.count(name, entry, shard.tensors[name].nbytes, stored, resumed=True)
        todo = [(shard, name, _cost(e)) for name, e in shard.tensors.items() if name not in writer.entries]
        with (
            ThreadPoolExecutor(1, "tersor-hash") as hasher,
            ThreadPoolExecutor(1, "tersor-write") as output_thread,
        ):
            previous: Future[None] | None = None
            for _, name, data in read_ahead(todo, budget):
                extent = shard.tensors[name]
                entry, parts = _compress_tensor(name, extent, data, hasher)
                if previous is not None:
                    previous.result()
                previous = output_thread.submit(_write, writer, name, entry, parts, budget, _cost(extent))
                totals.count(
                    name, entry, extent.nbytes, sum(b.nbytes for p in parts for b in p.data), resumed=False
                )
                del data, parts
            if previous is not None:
                previous.result()
        manifest = dump_manifest({n: e for n, e in writer.entries.items() if e is not None})
        writer.finish({**shard.metadata, MANIFEST_KEY: manifest})
    finally:
        writer.close()
    totals.stored[shard.path.name] = list(writer.extents)


def _count_finished(shard: Shard, target: Path, totals: _Totals) -> None:
    """Count a shard that an earlier run finished."""
    done = read_shard(target)
    for name, entry in parse_manifest(done.metadata, str(target)).items():
        stored = sum(
            done.tensors[p.name].nbytes for p in stored_tensors(name, entry) if p.name in done.tensors
        )
        totals.count(name, entry, shard.tensors[name].nbytes, stored, resumed=True)
    totals.stored[shard.path.name] = list(done.tensors)


def _write(
    writer: ShardWriter, name: str, entry: TensorEntry, parts: list[Part], budget: Budget, cost: int
) -> None:
    try:
        writer.add(name, entry, parts)
    finally:
        budget.give(cost)


def _cost(extent: Extent) -> int:
    return int(extent.nbytes * _FOOTPRINT)


def _compress_tensor(
    name: str, extent: Extent, data: U8, hasher: ThreadPoolExecutor
) -> tuple[TensorEntry, list[Part]]:
    """The manifest entry and the stored parts of one tensor, decoded and compared already."""
    sha256 = hasher.submit(lambda: hashlib.sha256(data.data).hexdigest())
    packed = (
        encode(data, extent.dtype, extent.shape) if wants_compression(extent.dtype, extent.shape) else None
    )
    if packed is not None and packed.nbytes < data.nbytes:
        if not equals(packed, data):
            raise VerificationError(
                f"tensor {name!r}: decoding did not give the original back. This is a fault of tersor or of the "
                f"machine's memory; nothing was lost. Please report it with the tensor's dtype and shape"
            )
        return TensorEntry(CODEC_HUFFMAN, extent.dtype, extent.shape, sha256.result()), _parts(name, packed)
    entry = TensorEntry(CODEC_RAW, extent.dtype, extent.shape, sha256.result())
    return entry, [Part(name, extent.dtype, extent.shape, [data])]


def _parts(name: str, packed: Packed) -> list[Part]:
    """The stored parts of a compressed tensor, as `stored_tensors` declares them."""
    offsets = packed.offsets.astype("<u4").view(np.uint8)
    return [
        Part(name, "U8", (0,), []),
        Part(name + BOOK, "U8", packed.book.shape, [packed.book]),
        Part(name + OFFSETS, "U32", packed.offsets.shape, [offsets]),
        Part(name + TILES, "U8", packed.tiles.shape, [packed.tiles]),
    ]


def _header_room(shard: Shard) -> int:
    """Bytes that the header of this shard's compressed form takes at most."""

    def parts(entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Extent]]:
        for name, entry in entries.items():
            for part in stored_tensors(name, entry):
                shape = tuple(_WIDEST if n is None else n for n in part.shape)
                yield part.name, Extent(part.dtype, shape, _WIDEST, _WIDEST)

    entries = {
        name: TensorEntry(
            CODEC_HUFFMAN if wants_compression(e.dtype, e.shape) else CODEC_RAW, e.dtype, e.shape, "0" * 64
        )
        for name, e in shard.tensors.items()
    }
    return len(dump_header({**shard.metadata, MANIFEST_KEY: dump_manifest(entries)}, parts(entries)))
