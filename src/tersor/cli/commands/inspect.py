"""`tersor inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from tersor.cli.commands.options import AsJson, Compressed
from tersor.cli.render import name, out, print_json, size
from tersor.pipeline.inspect import (
    Bits,
    ModelSummary,
    QuantizedReport,
    TensorReport,
    inspect_model,
    inspect_tensor,
)

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
    index and padding cost, and how many weights lie outside a window of 8 exponents. Of quantised tensors the bits
    are split into codes, statistics (scales, zeros, steps, column order) and outliers.
    """
    if tensor is None:
        summary = inspect_model(model)
        print_json(summary) if as_json else _show_model(summary)
    else:
        report = inspect_tensor(model, tensor)
        if as_json:
            print_json(report)
        elif isinstance(report, QuantizedReport):
            _show_quantized(report)
        else:
            _show_tensor(report)


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
    bits = summary.quantized_bits
    if bits.weights:
        count = sum(t.bits is not None for t in summary.tensors)
        out.print(f"{count} tensors quantised, {bits.weights:,} weights at {split(bits)}")


def split(bits: Bits) -> str:
    """Bits per weight by what they hold."""
    codes, statistics, outliers = (n / bits.weights for n in (bits.codes, bits.statistics, bits.outliers))
    return f"{bits.per_weight:.3f} bits = {codes:.3f} codes + {statistics:.3f} statistics + {outliers:.3f} outliers"


def _show_quantized(r: QuantizedReport) -> None:
    s = r.summary
    assert s.bits is not None
    out.print(f"[bold]{name(s.name)}[/]  {s.dtype} {' x '.join(map(str, s.shape))}, codec {s.codec}")
    out.print(f"sha256 of the weights it gives  {r.sha256}")
    out.print(f"{split(s.bits)} per weight")
    told = {key: value for key, value in asdict(r.parameters).items() if key != "stored"}
    if told:
        out.print(", ".join(f"{key} {value}" for key, value in told.items()))
    out.print(
        f"entropy of the codes {r.code_entropy_bits:.4f} bits; {100 * r.outliers:.3f} % of the weights are outliers"
    )
    table = Table(box=None, pad_edge=False)
    for title in ("code", "count", "share"):
        table.add_column(title, justify="right")
    table.add_column("")
    total = sum(r.counts.values())
    for code, count in sorted(r.counts.items()):
        share = count / total
        table.add_row(str(code), f"{count:,}", f"{100 * share:.3f} %", "█" * round(80 * share))
    out.print(table)


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
