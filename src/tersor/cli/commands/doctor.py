"""`tersor doctor`."""

from __future__ import annotations

import typer

from tersor.cli.commands.options import AsJson
from tersor.cli.render import name, out, print_json

EPILOG = """
**Example**

`tersor doctor --json`
"""

_MARK = {"ok": "[green]ok[/]    ", "absent": "[yellow]absent[/]", "broken": "[bold red]broken[/]"}


def command(as_json: AsJson = False) -> None:
    """Look at this machine: libraries, the codec by a self-test, Transformers, the GPU.

    Exit status 1 if something is broken; what is merely absent is named with what it would bring.
    """
    from tersor.pipeline.doctor import diagnose

    result = diagnose()
    if as_json:
        print_json(result)
    else:
        out.print(f"tersor {result.tersor}")
        for check in result.checks:
            out.print(f"{_MARK[check.status]} {check.name:<16} {name(check.detail)}")
            if check.advice:
                out.print(f"       {'':<16} → {check.advice}", markup=False)
    if not result.ok:
        raise typer.Exit(1)
