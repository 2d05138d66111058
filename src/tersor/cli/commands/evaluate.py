"""`tersor eval`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from tersor.cli.commands.options import AsJson, Quiet
from tersor.cli.render import err, name, out, print_json
from tersor.pipeline.device import Arithmetic

if TYPE_CHECKING:
    from tersor.pipeline.evaluate_model import ModelEvaluation

EPILOG = """
**Examples**

`tersor eval ./llama-4bit --text wikitext2_test.txt --join-lines --against ./Llama-3.1-8B`

`tersor eval ./llama-4bit --tasks piqa.jsonl --tasks arc_easy.jsonl --limit 400`
"""


def command(
    model: Annotated[str, typer.Argument(help="A model directory or Hub id, compressed or not.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The original: measure the divergence from it, on the texts."),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A text; give the option once for each.")
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A zero-shot task, a .jsonl file of rows as WinoGrande, PIQA, HellaSwag, ARC, LAMBADA have them.",
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Context in tokens: the model's, at most 2048, unless given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many first rows of every task.")] = None,
    join_lines: Annotated[
        bool, typer.Option("--join-lines", help="Join a text's lines as papers score WikiText.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[
        Arithmetic,
        typer.Option(
            help="Arithmetic of both models: what the checkpoint names, unless given. In float32 perplexity is the "
            "same on every device to three decimals; in 16 bits the order of sums shows."
        ),
    ] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how good a model is: perplexity, divergence from its original, zero-shot tasks, all from local files.

    Every number has its standard error. Perplexity and divergence are over windows of --length tokens without overlap,
    the first token of each unscored; tasks are scored by log-likelihood, per character in the column acc_norm.
    """
    from tersor.pipeline.evaluate_model import evaluate_model

    with _progress(quiet or as_json) as show:
        result = evaluate_model(
            model,
            against=against,
            texts=text or (),
            tasks=tasks or (),
            length=length,
            limit=limit,
            join_lines=join_lines,
            device=device,
            dtype=dtype,
            on_progress=show,
        )
    print_json(result) if as_json else _show(result)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each file; nothing if quiet or where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(name(what), total=total)
            bar.update(tasks[what], completed=done)

        yield show


def _show(e: ModelEvaluation) -> None:
    r = e.results
    if r.texts:
        table = _table("text", "tokens", "perplexity", "bits per byte")
        for file, p in r.texts.items():
            stderr = p.perplexity * p.loss_stderr
            table.add_row(
                name(file), f"{p.tokens:,}", _with(p.perplexity, stderr, 3), f"{p.bits_per_byte:.4f}"
            )
        out.print(table)
    if r.divergences:
        out.print(f"against {name(e.against)}:")
        table = _table(
            "text", "original", "perplexity grows", "KL (nats)", "99 % below", "same likeliest token"
        )
        for file, d in r.divergences.items():
            growth = math.exp(d.excess_loss)
            table.add_row(
                name(file),
                f"{math.exp(d.original_loss):.3f}",
                _with(100 * (growth - 1), 100 * growth * d.excess_loss_stderr, 2) + " %",
                _with(d.kl, d.kl_stderr, 5),
                f"{d.kl_99:.4f}",
                _with(100 * d.same_top, 100 * d.same_top_stderr, 2) + " %",
            )
        out.print(table)
    if r.tasks:
        table = _table("task", "rows", "acc", "acc_norm", "perplexity")
        for file, t in r.tasks.items():
            norm = "" if t.acc_norm is None else _with(t.acc_norm, t.acc_norm_stderr, 4)
            perplexity = "" if t.perplexity is None else f"{t.perplexity:.3f}"
            table.add_row(name(file), f"{t.rows:,}", _with(t.acc, t.acc_stderr, 4), norm, perplexity)
        out.print(table)
    out.print(
        f"[dim]{name(e.model)} on {e.device} in {e.dtype}, context {e.length}; ± is one standard error[/]"
    )


def _table(first: str, *rest: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for title in rest:
        table.add_column(title, justify="right")
    return table


def _with(value: float, stderr: float | None, digits: int) -> str:
    """A number and its standard error, which one window or row cannot give."""
    if stderr is None or math.isnan(stderr):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"
