"""What the commands share in showing: sizes, progress, JSON, errors. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
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

# Piped, a line is as long as it must be: a tensor's name that is cut off helps nobody.
_WIDTH = None if sys.stdout.isatty() else 10_000
out = Console(highlight=False, soft_wrap=True, emoji=False, width=_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

_LINE_SECONDS = 10  # between two lines of progress in a log


def size(nbytes: int | float) -> str:
    """Bytes for people, in powers of ten as GPUs and disks are sold: 1.42 MB."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def name(value: object) -> str:
    """A path or a tensor's name amid Rich's [markup], which it is not, whatever brackets it has."""
    return escape(str(value))


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
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return str(value) if isinstance(value, Path) else value


def print_error(error: Exception | str, as_json: bool) -> None:
    """The message on stderr, and with --json the same as a document on stdout."""
    kind = type(error).__name__ if isinstance(error, Exception) else "Interrupted"
    err.print(f"[bold red]error[/] {kind}:", end=" ")
    err.print(str(error), markup=False)
    if as_json:
        print_json({"error": {"type": kind, "message": str(error)}})


def _lines(doing: str) -> OnProgress:
    """Progress for a log file: a line now and then, for jobs that are long enough."""
    started = last = time.monotonic()

    def show(step: Step) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LINE_SECONDS or not step.done_bytes:
            return
        last = now
        left = (now - started) * (step.total_bytes / step.done_bytes - 1)
        share = 100 * step.done_bytes / step.total_bytes
        err.print(
            f"{doing}: {share:.0f} %, {size(step.done_bytes)} of {size(step.total_bytes)}, ratio so far "
            f"{100 * step.ratio:.1f} %, {seconds(left)} left"
        )

    return show


@contextmanager
def progress_bar(doing: str, quiet: bool) -> Iterator[OnProgress]:
    """A bar on stderr with bytes, ratio so far and time left; lines where there is no terminal; nothing if quiet."""
    if quiet:
        yield silent
        return
    if not sys.stderr.isatty():
        yield _lines(doing)
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
                tensor=name(step.tensor),
            )

        yield show
