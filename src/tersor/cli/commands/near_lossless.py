"""The near-lossless half of `tersor compress`: which goal its options mean, and how a result is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tersor.cli.amounts import parse_bytes, parse_share
from tersor.cli.commands.inspect import split
from tersor.cli.render import err, name, out, progress_bar, seconds, size
from tersor.format.errors import UsageError
from tersor.pipeline.progress import OnProgress, Progress
from tersor.pipeline.source import text_path

if TYPE_CHECKING:
    from tersor.pipeline.near_lossless.attempts import HeldOut, Step
    from tersor.pipeline.near_lossless.goal import Calibration, Goal
    from tersor.pipeline.near_lossless.job import NearLosslessResult

Method = Literal["spqr", "gptq", "rtn", "integers"]
ActOrder = Literal["none", "columns", "groups"]


@dataclass(frozen=True)
class Options:
    """The near-lossless options as given; None where they were not."""

    bits: float | None
    max_ppl_loss: str | None
    max_kl: float | None
    size: str | None
    method: Method | None
    group: int | None
    rows: int | None
    tau: float | None
    stat_bits: int | None
    act_order: ActOrder | None
    calib: str | Path | None
    sequences: int | None
    length: int | None
    seed: int | None
    heldout: Path | None
    device: str | None

    def given(self) -> list[str]:
        """The options that were given, as they are spelled."""
        return ["--" + key.replace("_", "-") for key, value in vars(self).items() if value is not None]


def request(options: Options) -> tuple[Goal, Calibration] | None:
    """What the options ask for; None for lossless. Raises `UsageError` for combinations that make no sense."""
    goals = [o for o in options.given() if o in ("--bits", "--max-ppl-loss", "--max-kl", "--size")]
    if not options.given():
        return None
    if not goals:
        raise UsageError(
            f"{options.given()[0]} belongs to near-lossless compression: add --bits, --max-kl, --max-ppl-loss or "
            f"--size, or leave it out"
        )
    if len(goals) > 1:
        raise UsageError(f"{goals[0]} and {goals[1]} are two goals; give one")
    if options.calib is None:
        raise UsageError(
            f"{goals[0]} needs --calib TEXT: a text or .jsonl file like what the model was trained on"
        )
    return _goal(options), _calibration(options)


def _goal(options: Options) -> Goal:
    from tersor.pipeline.generate import require_transformers

    require_transformers()  # what follows needs torch; this says what to install
    from tersor.pipeline.near_lossless.goal import one_method, target

    own = [o for o in options.given() if o in ("--group", "--rows", "--tau", "--stat-bits", "--act-order")]
    bits = options.bits
    if bits is not None and not math.isfinite(bits):
        raise UsageError(f"--bits {bits}: give a number such as 4 or 4.5")
    if bits is not None and (bits == int(bits) or options.method not in (None, "spqr")):
        settings = (options.group, options.rows, options.tau, options.stat_bits, options.act_order)
        return one_method(options.method or "spqr", bits, *settings)
    if own:
        raise UsageError(
            f"{own[0]} fixes the method, and here an allocation chooses it; give it with a whole number of --bits"
        )
    family = options.method or "integers"  # the smallest for the same loss (dev/BENCHMARKS.md)
    if bits is not None:
        return target("bits", bits, family)
    if options.max_kl is not None:
        return target("kl", options.max_kl, family)
    if options.max_ppl_loss is not None:
        return target("ppl", parse_share(options.max_ppl_loss, "--max-ppl-loss"), family)
    assert options.size is not None
    return target("size", parse_bytes(options.size, "--size"), family)


def _calibration(options: Options) -> Calibration:
    from tersor.pipeline.near_lossless.goal import Calibration

    assert options.calib is not None
    sequences = 128 if options.sequences is None else options.sequences
    return Calibration(text_path(options.calib), sequences, options.length, options.seed or 0)


@contextmanager
def late_bar(doing: str, quiet: bool) -> Iterator[OnProgress]:
    """A progress bar that begins with the first progress: what came before would spoil its estimate."""
    with ExitStack() as stack:
        bar: OnProgress | None = None

        def show(step: Progress) -> None:
            nonlocal bar
            bar = bar or stack.enter_context(progress_bar(doing, quiet))
            bar(step)

        yield show


def show_step(step: Step) -> None:
    """A line for every matrix that is done, and for every tenth of a long measurement."""
    layer = step.layer
    if layer is None:
        tenth = max(1, step.total // 10)
        if step.done == step.total or step.done % tenth == 0:
            err.print(f"[dim]{step.stage}: {step.done} of {step.total}[/]")
        return
    loss = "taken over" if layer.error is None else f"output error {decibel(layer.error)}"
    outliers = f", {100 * layer.outliers:.2f} % outliers" if layer.outliers else ""
    err.print(
        f"[dim]{step.stage}, {step.done} of {step.total}:[/] {name(layer.name)} "
        f"[dim]{layer.bits.per_weight:.3f} bits{outliers}, {loss}[/]"
    )


def decibel(ratio: float) -> str:
    """An error over its signal, both squared, for people."""
    return f"{10 * math.log10(max(ratio, 1e-30)):.1f} dB"


def show_result(result: NearLosslessResult) -> None:
    """The job in a few lines."""
    c = result.compressed
    out.print(
        f"[bold]{name(c.path)}[/]: {size(c.original_bytes)} → {size(c.stored_bytes)} "
        f"([bold]{100 * c.ratio:.1f} %[/]) in {seconds(c.seconds)}"
    )
    out.print(f"goal         {result.goal}")
    if not result.reached:
        out.print(
            "[bold yellow]not reached[/]  no quantised model that was measured keeps the bound, so nothing was "
            "quantised: all tensors are stored without loss"
        )
    elif result.bits.weights:
        out.print(f"quantised    {result.quantized_tensors} of {c.tensors} tensors, the rest without loss")
        out.print(f"             {result.bits.weights:,} weights at {split(result.bits)}")
    errors = {layer.name: layer.error for layer in result.layers if layer.error is not None}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        out.print(
            f"layers       output errors {decibel(min(errors.values()))} to {decibel(errors[worst])}, the "
            f"largest in {name(worst)} (all with --json)"
        )
    if result.held_out is not None:
        _show_held_out(result.held_out)
    if len(result.tried) > 1:
        told = "; ".join(_attempt(t.bits_per_weight, t.held_out) for t in result.tried)
        out.print(f"attempts     {told}")


def _show_held_out(h: HeldOut) -> None:
    out.print(
        f"measured     on {h.tokens:,} held-out tokens: KL {h.kl:.5f} ± {h.kl_stderr:.5f} nats, perplexity "
        f"{h.original_perplexity:.3f} → {h.perplexity:.3f} "
        f"({100 * h.perplexity_loss:+.2f} ± {100 * h.perplexity_loss_stderr:.2f} %), "
        f"same likeliest token {100 * h.same_top:.1f} %"
    )


def _attempt(bits: float, h: HeldOut | None) -> str:
    return f"{bits:.3f} bits" + ("" if h is None else f", KL {h.kl:.5f}, {100 * h.perplexity_loss:+.2f} %")
