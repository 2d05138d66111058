"""`tersor plan`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tersor.cli.amounts import parse_bytes, parse_tokens
from tersor.cli.commands.options import AsJson, Model
from tersor.cli.render import name, out, print_json, size
from tersor.pipeline.plan import Plan, SizePlan, plan

EPILOG = """
**Examples**

`tersor plan meta-llama/Llama-3.1-8B --gpu 16GB --context 8k`

`tersor plan ./my-model --context 128k --json`
"""


def command(
    model: Model,
    gpu: Annotated[str | None, typer.Option(metavar="SIZE", help="A GPU's memory, such as 24GB.")] = None,
    context: Annotated[
        str, typer.Option(metavar="TOKENS", help="Context of one sequence, such as 8192 or 32k.")
    ] = "2k",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit, for a Hub id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a model would take, and what fits which GPU, from headers only.

    Nothing but headers is read, also on the Hub. Sizes marked ~ are estimates from measured models; compress to know.
    """
    result = plan(
        model,
        gpu_bytes=parse_bytes(gpu, "--gpu") if gpu else None,
        context=parse_tokens(context, "--context"),
        revision=revision,
    )
    print_json(result) if as_json else _show(result)


def _show(result: Plan) -> None:
    cache = result.kv_bytes_per_token
    out.print(
        f"[bold]{name(result.model)}[/]: {result.parameters:,} parameters; "
        + (
            f"KV cache {size(cache)} per token, {size(cache * result.context)} for {result.context:,}"
            if cache
            else "the config does not tell the KV cache's size: it is not counted"
        )
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("weights")
    for title in ("size", "bits/weight", f"with {result.context:,} tokens", "smallest GPU"):
        table.add_column(title, justify="right")
    if result.gpu_bytes is not None:
        table.add_column(f"tokens that fit {size(result.gpu_bytes)}", justify="right")
    for s in result.sizes:
        row = [
            s.codec,
            ("" if s.exact else "~") + size(s.weight_bytes),
            f"{s.bits_per_weight:.2f}",
            size(s.total_bytes),
            f"{s.fits_gb} GB" if s.fits_gb else "none alone",
        ]
        if result.gpu_bytes is not None:
            row.append(_room(s))
        table.add_row(*row)
    out.print(table)
    out.print("[dim]with tokens: weights, KV cache of one sequence in bfloat16, and 1 GB for the runtime[/]")


def _room(plan: SizePlan) -> str:
    """What of the asked GPU is left, for people."""
    if not plan.fits_asked and not plan.context_on_gpu:
        return "does not fit"
    return "fits" if plan.context_on_gpu is None else f"{plan.context_on_gpu:,}"
