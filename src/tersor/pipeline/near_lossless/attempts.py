"""Quantise the model by one assignment of methods to matrices, measure it, and keep both on disk.

An attempt is known by its assignment. What it quantised waits in a folder of its own, so that a job that
was killed goes on within the attempt it was at, and one that comes back to an attempt finds it done:

    SCRATCH/KEY/           the matrices (`quantize.store`)
    SCRATCH/KEY/done.json  their exact bits, and what was measured

Measured is the divergence from the original on held-out text, window by window, and the growth of
perplexity on the same tokens, each with its standard error.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.pipeline.evaluate_text import divergence
from tersor.pipeline.near_lossless.opened import Opened
from tersor.quantize.integers import IntegerSettings
from tersor.quantize.method import Method
from tersor.quantize.settings import Settings
from tersor.quantize.store import Store
from tersor.quantize.stream import Job, LayerReport, quantize_model

if TYPE_CHECKING:
    from torch import Tensor

Assignment = Mapping[str, Method]
"""Each matrix that is to be quantised, and how."""


@dataclass(frozen=True)
class Step:
    """What a long job tells: where it is, and the matrix that is done (None while measuring)."""

    stage: str
    done: int
    total: int
    layer: LayerReport | None = None


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class HeldOut:
    """The loss on held-out text, against the original on the same tokens."""

    tokens: int
    kl: float
    kl_stderr: float
    same_top: float
    original_perplexity: float
    perplexity: float
    perplexity_loss: float
    perplexity_loss_stderr: float


@dataclass(frozen=True)
class LayerLoss:
    """What quantising did to one matrix.

    error: squared error of its output over the output's own square, on the calibration text; None when the
    matrix was taken over from a run that was cut short.
    """

    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    outliers: float
    error: float | None


@dataclass(frozen=True)
class Attempt:
    """One assignment, carried out."""

    folder: Path
    bits: int  # of all its matrices
    weights: int
    layers: tuple[LayerLoss, ...]
    held_out: HeldOut | None

    def store(self) -> Store:
        """Its matrices."""
        return Store(self.folder, self.folder.name)


class Attempts:
    """All attempts on one model, with one calibration and one held-out text."""

    def __init__(
        self,
        opened: Opened,
        sequences: Tensor,
        held_out: list[Tensor] | None,
        scratch: Path,
        device: str,
        on_step: OnStep,
    ) -> None:
        """sequences: (N, L) token ids; held_out: windows (1, L) of other text, or None not to measure."""
        self.opened, self.sequences, self.windows = opened, sequences, held_out
        self.scratch, self.device, self.on_step = scratch, device, on_step

    def make(self, assignment: Assignment, stage: str = "quantising") -> Attempt:
        """Quantise and measure, or take what an earlier run did."""
        key = hashlib.sha256(json.dumps(plain(assignment), sort_keys=True).encode()).hexdigest()[:16]
        folder = self.scratch / key
        if (folder / "done.json").exists():
            return self._read(folder)
        store = Store(folder, key)
        # an attempt changes the weights; a model read block by block has none to keep
        model = self.opened.model if self.opened.lazy else copy.deepcopy(self.opened.model)
        done = 0

        def tell(layer: LayerReport) -> None:
            nonlocal done
            done += 1
            self.on_step(Step(stage, done, len(assignment), layer))

        job = Job(
            assignment.get,
            device=self.device,
            served=self.opened.served,
            store=store,
            lazy=self.opened.lazy,
            progress=tell,
        )
        reports = quantize_model(model, self.sequences, job)
        found = {
            "bits": sum(report.bits.total for report in reports),
            "weights": sum(report.bits.weights for report in reports),
            "layers": [(r.name, r.shape, r.bits.per_weight, r.outliers, r.error) for r in reports],
            "held_out": asdict(self._measure(model)) if self.windows else None,
        }
        scratch = folder / "done.part"
        scratch.write_text(json.dumps(found))
        scratch.replace(folder / "done.json")
        return self._read(folder)

    def keep_only(self, attempt: Attempt) -> None:
        """Remove what other attempts left on disk."""
        for folder in self.scratch.iterdir():
            if folder.is_dir() and folder != attempt.folder:
                shutil.rmtree(folder)

    def _read(self, folder: Path) -> Attempt:
        found = json.loads((folder / "done.json").read_text())
        held_out = HeldOut(**found["held_out"]) if found["held_out"] else None
        layers = tuple(LayerLoss(name, (shape[0], shape[1]), *rest) for name, shape, *rest in found["layers"])
        return Attempt(folder, found["bits"], found["weights"], layers, held_out)

    def _measure(self, model: Any) -> HeldOut:
        import math

        assert self.windows is not None
        ppl, far = divergence(
            model,
            self.opened.model,
            self.windows,
            1,
            lambda done, total: self.on_step(Step("measuring on held-out text", done, total)),
        )
        growth = math.exp(far.excess_loss)
        return HeldOut(
            far.tokens,
            far.kl,
            far.kl_stderr,
            far.same_top,
            math.exp(far.original_loss),
            ppl.perplexity,
            growth - 1,
            growth * far.excess_loss_stderr,
        )


def plain(assignment: Assignment) -> dict[str, Any]:
    """An assignment as JSON data."""
    return {name: [type(method).__name__, asdict(method)] for name, method in assignment.items()}


def parse_method(value: Any) -> Method:
    """A method from such data."""
    kind, fields = value
    return IntegerSettings(**fields) if kind == IntegerSettings.__name__ else Settings(**fields)
