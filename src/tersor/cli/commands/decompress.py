"""`tersor decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.commands.options import AsJson, Compressed, Quiet
from tersor.cli.render import name, out, print_json, progress_bar, seconds, size

EPILOG = """
**Example**

`tersor decompress ./Llama-3.1-8B-tersor ./Llama-3.1-8B`
"""


def command(
    model: Compressed,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; must not exist.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Give the original checkpoint back, byte for byte per tensor.

    Names, dtypes, shapes and bytes are the original's, checked against their SHA-256 on the way; any software that
    read the original reads this. Resumes like compress. Of quantised tensors the original is gone: they come back as
    the weights the compressed model computes with, and the last line says how many they are.
    """
    from tersor.pipeline.decompress import decompress

    with progress_bar("decompressing", quiet or as_json) as show:
        result = decompress(model, output, on_progress=show)
    if as_json:
        print_json(result)
        return
    out.print(
        f"[bold]{name(result.path)}[/]: {size(result.stored_bytes)} → {size(result.original_bytes)}, "
        f"{result.tensors} tensors, every SHA-256 as stated ({seconds(result.seconds)})"
    )
    if result.quantized:
        out.print(
            f"{result.quantized} tensors were quantised: here they are what the compressed model computes with, not "
            f"the original's bits"
        )
