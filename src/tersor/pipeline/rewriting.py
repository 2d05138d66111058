"""What compress and decompress share: one checkpoint rewritten as another, shard for shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tersor.format.checkpoint import INDEX, Checkpoint
from tersor.format.constants import FORMAT_VERSION
from tersor.format.errors import UsageError
from tersor.pipeline.output import Output, partial_of


def open_output(
    kind: str, source: Checkpoint, final: Path, options: Mapping[str, Any] | None = None
) -> Output:
    """The output for rewriting `source` to `final`; a job is known by its kind, its input files and its options."""
    if source.is_file and final.suffix != ".safetensors":
        raise UsageError(f"{final}: a single file becomes a single file; give it a name in .safetensors")
    origin, partial = source.path.resolve(), partial_of(final).resolve()
    if not source.is_file and final.resolve().is_relative_to(origin):
        raise UsageError(f"{final}: lies inside the model it is made from; choose an output beside it")
    if partial.is_relative_to(origin) or origin.is_relative_to(partial):
        raise UsageError(
            f"{partial}: is where {final} is prepared, and holds the model it is made from; rename one"
        )
    stats = [(shard.path.name, shard.path.stat()) for shard in source.shards]
    job = {
        "job": kind,
        "format": FORMAT_VERSION,
        "source": str(source.path.resolve()),
        "shards": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }
    return Output(final, {**job, "options": options} if options else job)


def publish(
    output: Output,
    source: Checkpoint,
    config: Mapping[str, Any],
    stored: Mapping[str, Iterable[str]],
    total_bytes: int,
) -> None:
    """Add what surrounds the shards and let the output appear.

    `stored` names, for each shard's file, the tensors that it holds now, of `total_bytes` in all.
    """
    if source.is_file:
        output.finish_file(source.path.name)
        return
    output.carry_over(source.path, source.other_files())
    index = None
    if source.index is not None:
        weight_map = {name: file for file, names in stored.items() for name in names}
        metadata = {**source.index, "total_size": total_bytes}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    output.finish_directory(config, index, INDEX)
