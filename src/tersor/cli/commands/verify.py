"""`tersor verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from tersor.cli.commands.options import AsJson, Compressed, Quiet
from tersor.cli.render import err, name, out, print_json, progress_bar, seconds, size
from tersor.format.errors import VerificationError

EPILOG = """
**Examples**

`tersor verify ./Llama-3.1-8B-tersor`

`tersor verify ./Llama-3.1-8B-tersor --against ./Llama-3.1-8B`
"""


def command(
    model: Compressed,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Compare with this original too, bit for bit.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Prove that a compressed model is whole: decode everything and compare hashes.

    Each tensor is decoded, its SHA-256 compared with the original's in the manifest, and encoded again, which finds
    flipped bits in padding too. Quantised tensors are proven by two hashes, of what is stored and of what it gives;
    they are not compared with an original, from which they differ on purpose. Exit status 0: every tensor holds.
    3: the files break the format. 4: a tensor does not hold.
    """
    from tersor.pipeline.verify import verify

    with progress_bar("verifying", quiet or as_json) as show:
        result = verify(model, against=against, on_progress=show)
    if as_json:
        print_json(result)
    for failure in () if as_json else result.failures:
        err.print(f"[bold red]{failure.error}[/]", end=" ")
        err.print(failure.message, markup=False)
    if not result.ok:
        raise typer.Exit(VerificationError.exit_status)
    if not as_json:
        plain = result.tensors - result.quantized
        which = f"the {plain} that are not quantised" if result.quantized else "all of them"
        same = f", {which} bit for bit those of {name(result.against)}" if result.against else ""
        out.print(
            f"[bold green]ok[/] {name(result.path)}: {result.tensors} tensors, {size(result.original_bytes)} decoded, "
            f"every SHA-256 as stated{same} ({seconds(result.seconds)})"
        )
