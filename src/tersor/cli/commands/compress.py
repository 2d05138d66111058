"""`tersor compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.commands.options import AsJson, Model, Quiet
from tersor.cli.render import name, out, print_json, progress_bar, seconds, size

EPILOG = """
**Examples**

`tersor compress ./Llama-3.1-8B ./Llama-3.1-8B-tersor`

`tersor compress Qwen/Qwen3-8B ./qwen3-8b-tersor`

`tersor compress adapter.safetensors adapter-tersor.safetensors`
"""


def command(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; must not exist.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit, for a Hub id.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress a model without loss, to about 70 % of bfloat16.

    Streams shard by shard in bounded memory. Every tensor is decoded and compared bit for bit before it is written,
    and OUT appears only when all of it is there. Interrupted, run the same command again: it goes on where it was.
    """
    from tersor.pipeline.compress import compress

    with progress_bar("compressing", quiet or as_json) as show:
        result = compress(model, output, revision=revision, on_progress=show)
    if as_json:
        print_json(result)
        return
    saved = result.original_bytes - result.stored_bytes
    out.print(
        f"[bold]{name(result.path)}[/]: {size(result.original_bytes)} → {size(result.stored_bytes)} "
        f"([bold]{100 * result.ratio:.1f} %[/], {size(saved)} less) in {seconds(result.seconds)}"
    )
    resumed = (
        f", {result.resumed_tensors} taken over from an interrupted run" if result.resumed_tensors else ""
    )
    out.print(
        f"{result.compressed_tensors} of {result.tensors} tensors coded, the rest stored as they are{resumed}; "
        f"every one decoded and compared bit for bit"
    )
