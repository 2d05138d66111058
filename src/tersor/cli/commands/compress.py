"""`tersor compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersor.cli.commands.near_lossless import (
    ActOrder,
    Method,
    Options,
    late_bar,
    request,
    show_result,
    show_step,
)
from tersor.cli.commands.options import AsJson, Model, Quiet
from tersor.cli.render import name, out, print_json, progress_bar, seconds, size

if TYPE_CHECKING:
    from tersor.pipeline.compress import CompressResult

EPILOG = """
**Examples**

`tersor compress ./Llama-3.1-8B ./Llama-3.1-8B-tersor`

`tersor compress Qwen/Qwen3-8B ./qwen3-8b-tersor`

`tersor compress adapter.safetensors adapter-tersor.safetensors`

`tersor compress ./Llama-3.1-8B ./llama-4bit --bits 4 --calib c4.jsonl --heldout wikitext.txt`

`tersor compress ./Llama-3.1-8B ./llama-1pct --max-ppl-loss 1% --calib c4.jsonl --heldout wikitext.txt`
"""

_GOAL, _HOW, _TEXT = "Near-lossless: one goal", "Near-lossless: how", "Near-lossless: text"


def command(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; must not exist.")],
    bits: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_GOAL,
            help="A whole number is the width of the codes, 2 to 8. A fraction is the average that an allocation may "
            "spend per weight of the blocks' matrices, everything counted. With --method integers: the codes' entropy.",
        ),
    ] = None,
    max_ppl_loss: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=_GOAL,
            help="Let perplexity on --heldout grow by at most this, such as 1%.",
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            rich_help_panel=_GOAL,
            help="Let the KL divergence from the original on --heldout be at most this, such as 0.01.",
        ),
    ] = None,
    total: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="SIZE", rich_help_panel=_GOAL, help="All weight files together, such as 12GB."
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            rich_help_panel=_HOW,
            help="spqr, gptq and rtn have codes of fixed width, integers are entropy coded: smaller for the same loss. "
            "Unless given: spqr for a width, integers for what an allocation reaches.",
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_HOW,
            help="Weights of a row that share a scale: 16 for spqr, the whole row for others.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_HOW, help="Rows whose scales share a second-level grid (spqr): 16 unless given."
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_HOW,
            help="Outlier threshold (spqr): 0.2, and 0.45 below 4 bits, unless given; less keeps more outliers.",
        ),
    ] = None,
    stat_bits: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_HOW,
            help="Bits of a scale's and of a zero's code (spqr): 3 unless given; 0 stores 16-bit floats.",
        ),
    ] = None,
    act_order: Annotated[
        ActOrder | None,
        typer.Option(
            rich_help_panel=_HOW,
            help="Quantise what matters most first (spqr, gptq): whole groups, which stay in place; columns, which "
            "makes products gather their input; or none. Groups unless given.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(rich_help_panel=_HOW, help="cpu, cuda, or auto (the default).")
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=_TEXT,
            help="Text or .jsonl (.gz) to learn the inputs from, here or hf://datasets/OWNER/NAME/FILE; required.",
        ),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(rich_help_panel=_TEXT, help="Calibration sequences to draw: 128 unless given."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_TEXT,
            help="Tokens of a sequence: the model's context, at most 2048, unless given.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(rich_help_panel=_TEXT, help="Seed of the draw: 0 unless given.")
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=_TEXT,
            help="Other text, on which the loss is measured; a bound on the loss requires it.",
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit, for a Hub id.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress a model without loss, to about 70 % of bfloat16; or, with a goal, further, for a loss that is measured.

    Streams shard by shard in bounded memory. Every tensor is decoded and compared bit for bit before it is written,
    and OUT appears only when all of it is there. Interrupted, run the same command again: it goes on where it was.

    With one of --bits, --max-ppl-loss, --max-kl and --size the matrices of the model's blocks are quantised and all
    else is stored without loss. The model must be a causal language model that Transformers
    loads. With a width it is read block by block; other goals, and --heldout, load it whole, twice.
    """
    wanted = request(
        Options(
            bits,
            max_ppl_loss,
            max_kl,
            total,
            method,
            group,
            rows,
            tau,
            stat_bits,
            act_order,
            calib,
            sequences,
            length,
            seed,
            heldout,
            device,
        )
    )
    if wanted is None:
        from tersor.pipeline.compress import compress

        with progress_bar("compressing", quiet or as_json) as show:
            result = compress(model, output, revision=revision, on_progress=show)
        print_json(result) if as_json else _show(result)
        return
    from tersor.pipeline.near_lossless.job import compress_near_lossless

    goal, calibration = wanted
    with late_bar("compressing", quiet or as_json) as show:
        near = compress_near_lossless(
            model,
            output,
            goal,
            calibration,
            held_out=heldout,
            revision=revision,
            device=device or "auto",
            on_progress=show,
            on_step=(lambda step: None) if quiet or as_json else show_step,
        )
    print_json(near) if as_json else show_result(near)


def _show(result: CompressResult) -> None:
    saved = result.original_bytes - result.stored_bytes
    out.print(
        f"[bold]{name(result.path)}[/]: {size(result.original_bytes)} → {size(result.stored_bytes)} "
        f"([bold]{100 * result.ratio:.1f} %[/], {size(saved)} less) in {seconds(result.seconds)}"
    )
    resumed = (
        f", {result.resumed_tensors} taken over from an interrupted run" if result.resumed_tensors else ""
    )
    out.print(
        f"{result.compressed_tensors} of {result.tensors} tensors coded, the rest stored as they are{resumed}; "
        f"every one decoded and compared bit for bit"
    )
    if result.left_out:
        out.print(f"left out: {name(', '.join(result.left_out))} (weights beside the model's own shards)")
    if result.quantized_as:
        out.print(
            f"the model was quantised before ({name(result.quantized_as)}): Transformers loads it after `tersor "
            f"decompress`, not from here"
        )
