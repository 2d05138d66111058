"""`tersor inspect`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tersor.cli.commands.options import AsJson, Compressed
from tersor.cli.render import name, out, print_json, size
from tersor.pipeline.inspect import ModelSummary, TensorReport, inspect_model, inspect_tensor

EPILOG = """
**Examples**

`tersor inspect ./Llama-3.1-8B-tersor`

`tersor inspect ./Llama-3.1-8B-tersor model.layers.0.mlp.up_proj.weight`
"""


def command(
    model: Compressed,
    tensor: Annotated[
        str | None, typer.Argument(help="A tensor to decode and measure; without it, list all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is stored: every tensor's codec and bits per weight, or the code of one tensor.

    Without TENSOR only headers are read. With it the tensor is decoded: entropy of its exponents, code lengths, what
    index and padding cost, and how many weights lie outside a window of 8 exponents.
    """
    if tensor is None:
        summary = inspect_model(model)
        print_json(summary) if as_json else _show_model(summary)
    else:
        report = inspect_tensor(model, tensor)
        print_json(report) if as_json else _show_tensor(report)


def _show_model(summary: ModelSummary) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("tensor", "codec", "dtype", "shape"):
        table.add_column(title, overflow="fold")
    for title in ("bits/weight", "bytes"):
        table.add_column(title, justify="right")
    for t in summary.tensors:
        shape = " x ".join(map(str, t.shape))
        table.add_row(
            name(t.name), t.codec, t.dtype, shape, f"{t.bits_per_weight:.3f}", f"{t.stored_bytes:,}"
        )
    out.print(table)
    ratio = summary.stored_bytes / summary.original_bytes if summary.original_bytes else 1.0
    out.print(
        f"[bold]{name(summary.path)}[/]: {len(summary.tensors)} tensors, {size(summary.original_bytes)} → "
        f"{size(summary.stored_bytes)} ({100 * ratio:.2f} %)"
    )


def _show_tensor(r: TensorReport) -> None:
    s = r.summary
    out.print(
        f"[bold]{name(s.name)}[/]  {s.dtype} {' x '.join(map(str, s.shape))}, codec {s.codec}, {r.tiles:,} tiles"
    )
    out.print(f"sha256 of the original  {r.sha256}")
    if not r.code_lengths:
        out.print(f"stored as it is, {s.bits_per_weight:.0f} bits per weight")
        return
    out.print(
        f"{s.bits_per_weight:.4f} bits per weight = {r.code_bits:.4f} code + {r.raw_bits:.0f} raw + {r.index_bits:.4f} "
        f"index and padding"
    )
    gap = s.bits_per_weight - r.bound_bits
    out.print(
        f"entropy bound {r.bound_bits:.4f} (symbol entropy {r.symbol_entropy_bits:.4f}); {gap:.4f} above it; "
        f"{100 * r.outside_window:.2f} % outside the best window of 8 exponents"
    )
    table = Table(box=None, pad_edge=False)
    for title in ("symbol", "count", "share", "code bits"):
        table.add_column(title, justify="right")
    table.add_column("")
    total = sum(r.counts.values())
    for symbol, count in sorted(r.counts.items(), key=lambda item: -item[1]):
        share = count / total
        bar = "█" * round(80 * share)
        table.add_row(str(symbol), f"{count:,}", f"{100 * share:.3f} %", str(r.code_lengths[symbol]), bar)
    out.print(table)
