"""`tersor compress`: a model in, a smaller model out, nothing lost, proven as it goes.

No tensor is written before it was decoded and compared with the original bit for bit (`writing`).
A killed job resumes (`shard_writer`), and the output appears whole or not at all (`output`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.format.checkpoint import open_checkpoint
from tersor.format.errors import UsageError
from tersor.format.validate import is_compressed
from tersor.pipeline.output import resumable
from tersor.pipeline.progress import OnProgress, silent
from tersor.pipeline.rewriting import open_output, publish
from tersor.pipeline.source import local_path
from tersor.pipeline.writing import Totals, config_of, write_shard


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
    left_out: tuple[
        str, ...
    ] = ()  # weights beside the model's own, in this or another format: not carried over
    quantized_as: str | None = (
        None  # how the model was quantised before; Transformers loads it decompressed only
    )

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
    left_out = source.left_out()
    output = open_output("compress", source, Path(out))
    totals = Totals(source.nbytes, on_progress)
    with resumable(output):
        stored = {s.path.name: write_shard(s, output, source, {}, totals) for s in source.shards}
        publish(output, source, config_of(source.config), stored, totals.stored_bytes)
    return CompressResult(
        output.final,
        totals.tensors,
        totals.compressed,
        totals.resumed,
        totals.done_bytes,
        totals.stored_bytes,
        time.monotonic() - started,
        tuple(map(str, left_out)),
        _quantized_as(source.config),
    )


def _quantized_as(config: Mapping[str, Any] | None) -> str | None:
    """The quantization method that a model's own config names."""
    named = (config or {}).get("quantization_config")
    return str(named.get("quant_method")) if isinstance(named, dict) else None
