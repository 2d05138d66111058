"""The command line: parse, call the pipeline, render. Nothing is decided here."""

from __future__ import annotations


def main() -> None:
    """The `tersor` command."""
    from tersor.cli.app import run

    run()
