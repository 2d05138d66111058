"""`tersor sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tersor.cli.commands.near_lossless import Method, decibel
from tersor.cli.commands.options import AsJson, Quiet
from tersor.cli.render import err, name, out, print_json

if TYPE_CHECKING:
    from tersor.pipeline.sensitivity import LayerSensitivity, Sensitivity

EPILOG = """
**Examples**

`tersor sensitivity ./Llama-3.1-8B --calib c4.jsonl --bits 3`

`tersor sensitivity ./Llama-3.1-8B --calib c4.jsonl --layer model.layers.0.self_attn.q_proj --out map.png`

`tersor sensitivity ./Llama-3.1-8B --calib c4.jsonl --layer '*.o_proj' --out pictures/`
"""


def command(
    model: Annotated[str, typer.Argument(help="A model directory or Hub id, not compressed.")],
    calib: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Text or .jsonl (.gz) to learn the inputs from, here or hf://datasets/OWNER/NAME/FILE; required.",
        ),
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A matrix by name, * and ? match; give the option once for each. All, unless given.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="PNG", help="Draw the map: a .png for one matrix, a folder for several."
        ),
    ] = None,
    bits: Annotated[float, typer.Option(help="Bits of the method that errors are given for.")] = 3,
    method: Annotated[Method, typer.Option(help="That method.")] = "spqr",
    sequences: Annotated[int, typer.Option(help="Calibration sequences to draw.")] = 32,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of a sequence: the model's context, at most 2048, unless given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show which layers and which weights of a model matter: a table of errors, and pictures of weights.

    The table has each matrix's output error under a method, on the inputs that the original model gives it. A picture
    has a pixel for each weight, the brighter the more rounding it alone would cost when all others may repair it (the
    SpQR paper's Figure 2), the outliers that the method keeps in red. Nothing is written but pictures.
    """
    from tersor.pipeline.generate import require_transformers

    require_transformers()
    from tersor.pipeline.near_lossless.goal import Calibration, one_method
    from tersor.pipeline.sensitivity import sensitivity
    from tersor.pipeline.source import text_path

    def tell(found: LayerSensitivity) -> None:
        err.print(f"[dim]{name(found.name)}: output error {decibel(found.error)}[/]")

    result = sensitivity(
        model,
        one_method(method, bits).methods[0],
        Calibration(text_path(calib), sequences, length, seed),
        layers=layer or (),
        pictures=picture,
        device=device,
        on_layer=(lambda found: None) if quiet or as_json else tell,
    )
    print_json(result) if as_json else _show(result)


def _show(result: Sensitivity) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("matrix", overflow="fold")
    for title in ("shape", "output error", "bits", "outliers", "sensitive", "largest"):
        table.add_column(title, justify="right")
    for found in result.layers:
        table.add_row(
            name(found.name),
            f"{found.shape[0]} x {found.shape[1]}",
            decibel(found.error),
            f"{found.bits_per_weight:.3f}",
            f"{100 * found.outliers:.2f} %",
            f"{100 * found.above_tenth:.2f} %",
            f"{found.largest:.3g}",
        )
    out.print(table)
    out.print(
        f"[dim]{name(result.model)} under {result.method}; sensitive: weights that rounding would cost more than a "
        f"tenth of their layer's mean sensitivity; largest: the largest such cost[/]"
    )
    if result.unreached:
        out.print(
            f"[yellow]no token of the calibration text reached {len(result.unreached)} more, such as "
            f"{name(result.unreached[0])}; give more text[/]"
        )
    drawn = [found.picture for found in result.layers if found.picture]
    if drawn:
        out.print(f"drawn: {name(drawn[0] if len(drawn) == 1 else drawn[0].parent)} ({len(drawn)})")
