"""`tersor bench`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tersor.cli.commands.options import AsJson
from tersor.cli.render import out, print_json, size
from tersor.format.errors import UsageError
from tersor.pipeline.bench import MachineSpeed, ModelSpeed, bench_machine, bench_model

EPILOG = """
**Examples**

`tersor bench` measures the codec, and on a GPU decoding and fused products against cuBLAS

`tersor bench ./Llama-3.1-8B ./Llama-3.1-8B-tersor --tokens 256` compares tokens per second
"""


def command(
    models: Annotated[list[str] | None, typer.Argument(help="Models to run, compressed or not.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens per run.")] = 128,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    layout: Annotated[str, typer.Option(help="In GPU memory: auto, compact or fast.")] = "auto",
    exact: Annotated[bool, typer.Option(help="Decode and multiply as the plain model does.")] = False,
    fuse: Annotated[bool, typer.Option(help="Let torch compile each model's step first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure: the codec and the kernels of this machine, or tokens per second of models in the same loop.

    Models run one after the other, greedily at batch 1 with a static cache, on a GPU as one CUDA graph per token.
    Medians; weights rotate so that no cache serves them; every result is checked before it is timed.
    """
    if layout not in ("auto", "compact", "fast"):
        raise UsageError(f"--layout {layout}: is not one of auto, compact, fast")
    if not models:
        machine = bench_machine()
        print_json(machine) if as_json else _show_machine(machine)
        return
    speeds = [
        bench_model(m, new_tokens=tokens, device=device, layout=layout, exact=exact, fuse=fuse)
        for m in models
    ]
    print_json(speeds) if as_json else _show_models(speeds)


def _show_machine(machine: MachineSpeed) -> None:
    c = machine.codec
    out.print(
        f"codec on the CPU ({c.backend}, {c.threads} threads): encode {c.encode_mb_per_second:.0f} MB/s, decode "
        f"{c.decode_mb_per_second:.0f} MB/s of bfloat16 at {c.bits_per_weight:.3f} bits per weight"
    )
    if not machine.gpu_codecs:
        out.print("no CUDA device: kernels not measured")
        return
    table = Table("out x in", "layout", "bits/weight", "decode GB/s", "encode GB/s", box=None, pad_edge=False)
    for g in machine.gpu_codecs:
        shape = f"{g.rows} x {g.cols}"
        table.add_row(
            shape, g.layout, f"{g.bits_per_weight:.3f}", f"{g.decode / 1e9:.0f}", f"{g.encode / 1e9:.0f}"
        )
    out.print(table)
    counts = sorted({p.tokens for p in machine.gpu_products})
    table = Table("times cuBLAS", *(f"{m} tokens" for m in counts), box=None, pad_edge=False)
    for rows, cols in dict.fromkeys((p.rows, p.cols) for p in machine.gpu_products):
        ratios = {p.tokens: p.ratio for p in machine.gpu_products if (p.rows, p.cols) == (rows, cols)}
        table.add_row(f"{rows} x {cols}", *(f"{ratios[m]:.2f}" for m in counts))
    out.print(table)


def _show_models(speeds: list[ModelSpeed]) -> None:
    table = Table(
        "model", "device", "tokens/s", "of the first", "prefill ms", "weights", box=None, pad_edge=False
    )
    table.add_column("peak GPU memory")
    for s in speeds:
        table.add_row(
            str(s.model),
            s.device,
            f"{s.tokens_per_second:.2f}",
            f"{s.tokens_per_second / speeds[0].tokens_per_second:.3f}",
            f"{1e3 * s.prefill_seconds:.0f}",
            size(s.weight_bytes),
            size(s.peak_gpu_bytes) if s.peak_gpu_bytes is not None else "–",
        )
    out.print(table)
