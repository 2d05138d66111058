"""`tersor demo`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.commands.options import AsJson
from tersor.cli.render import err, out, print_json, size
from tersor.format.errors import OutputExists, VerificationError
from tersor.pipeline.demo import PROMPT, DemoResult

EPILOG = """
**Example**

`tersor demo --keep ./demo` leaves the compressed model in ./demo to look at.
"""


def command(
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Work in this new directory and keep it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the whole story on a small model that ships with tersor: compress, verify, the same tokens. Offline.

    The model has 1.05 million parameters and was trained for this project; it writes plausible English and knows
    nothing.
    """
    from tersor.pipeline.demo import demo

    def tell(step: str) -> None:
        if not as_json:
            err.print(f"[dim]· {step}[/]")

    if keep is not None and keep.exists():
        raise OutputExists(f"{keep}: exists already; choose another directory")
    with tempfile.TemporaryDirectory(prefix="tersor-demo-") as scratch:
        if keep is not None:
            keep.mkdir(parents=True)
        result = demo(keep or Path(scratch), tell)
    if as_json:
        print_json(result)
    else:
        _show(result, keep)
    if not result.same_file_after_decompress or result.same_tokens is False:
        raise typer.Exit(VerificationError.exit_status)


def _show(r: DemoResult, keep: Path | None) -> None:
    c = r.compressed
    out.print(
        f"compressed   {size(c.original_bytes)} → {size(c.stored_bytes)} of weights ([bold]{100 * c.ratio:.1f} %[/])"
    )
    out.print(f"verified     {r.verified.tensors} tensors decoded, every bit the original's")
    same_file = "identical" if r.same_file_after_decompress else "[bold red]different[/]"
    out.print(f"decompressed model.safetensors is {same_file}, byte for byte")
    if r.original is None or r.tersor is None:
        out.print("not run      pip install 'tersor[hf]' to see both models generate", markup=False)
    else:
        same = "[bold green]the same[/]" if r.same_tokens else "[bold red]not the same[/]"
        out.print(
            f"generated    {len(r.tersor.tokens)} tokens from each, {same}; weights in memory "
            f"{size(r.original.weight_bytes)} and {size(r.tersor.weight_bytes)}"
        )
        out.print(f"             {PROMPT}{r.tersor.text}", style="dim", markup=False)
    if keep is not None:
        out.print(f"kept in      {keep}: try `tersor inspect {keep}/compressed`", markup=False)
