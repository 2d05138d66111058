"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Model = Annotated[
    str, typer.Argument(help="A directory, a .safetensors file, or a Hub id such as owner/name.")
]
Compressed = Annotated[str, typer.Argument(help="A compressed model: directory, file or Hub id.")]
