"""What the commands share in showing: sizes, progress, JSON, errors. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tersor.pipeline.progress import OnProgress, silent
from tersor.pipeline.progress import Progress as Step

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def size(nbytes: int | float) -> str:
    """Bytes for people, in powers of ten as GPUs and disks are sold: 1.42 MB."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def print_json(result: Any) -> None:
    """One JSON document on stdout: a dataclass with its properties, or plain data."""
    print(json.dumps(plain(result), indent=2))


def plain(value: Any) -> Any:
    """Dataclasses (fields and public properties), paths and tuples as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        properties = {
            name: getattr(value, name)
            for name, member in vars(type(value)).items()
            if isinstance(member, property) and not name.startswith("_")
        }
        return {name: plain(item) for name, item in {**fields, **properties}.items()}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def print_error(error: Exception | str, as_json: bool) -> None:
    """The message on stderr, and with --json the same as a document on stdout."""
    name = type(error).__name__ if isinstance(error, Exception) else "Interrupted"
    err.print(f"[bold red]error[/] {name}:", end=" ")
    err.print(str(error), markup=False)
    if as_json:
        print_json({"error": {"type": name, "message": str(error)}})


@contextmanager
def progress_bar(doing: str, quiet: bool) -> Iterator[OnProgress]:
    """A bar on stderr with bytes, ratio so far and time left; nothing when quiet or no terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[ratio]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[tensor]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(doing, total=None, ratio="", tensor="")

        def show(step: Step) -> None:
            bar.update(
                task,
                total=step.total_bytes,
                completed=step.done_bytes,
                ratio=f"{100 * step.ratio:.1f} %",
                tensor=step.tensor,
            )

        yield show
