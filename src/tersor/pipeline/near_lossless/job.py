"""The whole job: calibrate, search, quantise, measure, then write the checkpoint; resumable throughout.

Everything that is known before the checkpoint is written lies in a scratch folder of the unfinished
output, with a report at the end. A second run of the same job finds what is done, in every stage, and
goes on from there. The folder goes when the output appears.

What is quantised are the matrices of the model's blocks. All else (embeddings, head, norms) is stored
without loss, as `tersor compress` does it by default.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor._version import __version__
from tersor.codec import encode
from tersor.codec.quantized.matrix import Bits
from tersor.codec.quantized.parts import Matrix
from tersor.format.checkpoint import Checkpoint, open_checkpoint
from tersor.format.errors import UsageError
from tersor.format.layout import wants_compression
from tersor.format.validate import is_compressed
from tersor.pipeline.compress import CompressResult
from tersor.pipeline.device import resolve_device
from tersor.pipeline.near_lossless.attempts import Attempts, HeldOut, LayerLoss, OnStep
from tersor.pipeline.near_lossless.goal import Calibration, Goal
from tersor.pipeline.near_lossless.opened import Opened, Place, load_tokenizer, open_model, sequence_length
from tersor.pipeline.near_lossless.search import Search, Tried
from tersor.pipeline.output import Output, resumable
from tersor.pipeline.plan import HUFFMAN_BITS
from tersor.pipeline.progress import OnProgress, silent
from tersor.pipeline.rewriting import open_output, publish
from tersor.pipeline.source import local_path
from tersor.pipeline.stored_form import header_room
from tersor.pipeline.writing import Totals, config_of, write_shard
from tersor.quantize.store import Store

if TYPE_CHECKING:
    from torch import Tensor

_REPORT = "report.json"


@dataclass(frozen=True)
class NearLosslessResult:
    """What a job made, and what is known of its loss.

    bits: of the quantised tensors, by what they hold; held_out: measured on held-out text, None without
    one; reached: whether a goal other than lossless storage was found for a bound on the loss; layers: what
    it did to each matrix.
    """

    compressed: CompressResult
    goal: str
    quantized_tensors: int
    bits: Bits
    held_out: HeldOut | None
    reached: bool
    tried: tuple[Tried, ...]
    layers: tuple[LayerLoss, ...]


def compress_near_lossless(
    model: str | Path,
    out: str | Path,
    goal: Goal,
    calibration: Calibration,
    *,
    held_out: str | Path | None = None,
    revision: str | None = None,
    device: str = "auto",
    on_progress: OnProgress = silent,
    on_step: OnStep = lambda step: None,
) -> NearLosslessResult:
    """Quantise the causal language model at `model` (directory or Hub id) to `out`, as `goal` wants it.

    `held_out` is a text file that nothing else saw, on which the loss is measured; a bound on the loss needs
    one. `device` is "cpu", "cuda" or "auto". Raises as `compress` does, and UsageError for text that is
    too short or no text, weights that are not finite, and goals that cannot be reached.
    """
    started = time.monotonic()
    source = open_checkpoint(local_path(str(model), revision))
    _refuse(source, goal, calibration, held_out)
    sequences, windows = _texts(source, calibration, held_out)
    output = open_output("compress", source, Path(out), _identity(goal, sequences, windows))
    totals = Totals(source.nbytes, on_progress)
    with resumable(output):
        if not (output.scratch / _REPORT).exists():
            _search(source, output, goal, sequences, windows, resolve_device(device), on_step)
        report = json.loads((output.scratch / _REPORT).read_text())
        quantized = _InStore(report, output.scratch)
        stored = {s.path.name: write_shard(s, output, source, quantized, totals) for s in source.shards}
        recorded = {
            "near_lossless": {
                "goal": report["goal"],
                "bits_per_weight": round(totals.bits.per_weight, 4),
                "held_out": report["held_out"],
            }
        }
        publish(output, source, config_of(source.config, recorded), stored, totals.stored_bytes)
    written = CompressResult(
        output.final,
        totals.tensors,
        totals.compressed,
        totals.resumed,
        totals.done_bytes,
        totals.stored_bytes,
        time.monotonic() - started,
    )
    return NearLosslessResult(
        written,
        report["goal"],
        totals.quantized,
        totals.bits,
        _held_out(report["held_out"]),
        report["folder"] is not None,
        tuple(Tried(t["bits_per_weight"], _held_out(t["held_out"])) for t in report["tried"]),
        tuple(LayerLoss(**{**layer, "shape": tuple(layer["shape"])}) for layer in report["layers"]),
    )


class _InStore(Mapping[str, Matrix]):
    """The quantised tensors by name, each read when it is asked for."""

    def __init__(self, report: Mapping[str, Any], scratch: Path) -> None:
        folder = report["folder"]
        self._store = Store(scratch / folder, folder) if folder else None
        self._places = {name: Place(**place) for name, place in report["places"].items()}

    def __getitem__(self, name: str) -> Matrix:
        assert self._store is not None
        q = self._store.get(self._places[name].matrix)
        if q is None:
            raise KeyError(name)
        return self._places[name].of(q)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _refuse(source: Checkpoint, goal: Goal, calibration: Calibration, held_out: str | Path | None) -> None:
    if is_compressed(source):
        raise UsageError(
            f"{source.path}: is compressed already; quantise the original (`tersor decompress` gives it back)"
        )
    if source.is_file:
        raise UsageError(
            f"{source.path}: is a single file; quantising runs the model and needs its directory"
        )
    if goal.bound and held_out is None:
        raise UsageError("a bound on the loss is kept by measuring it: give a text with --heldout")
    if held_out is not None and Path(held_out).resolve() == calibration.text.resolve():
        raise UsageError(
            f"{held_out}: is the calibration text too; the loss must be measured on text that nothing else saw"
        )


def _texts(
    source: Checkpoint, calibration: Calibration, held_out: str | Path | None
) -> tuple[Tensor, list[Tensor] | None]:
    """Calibration sequences (N, L), and the windows of the held-out text."""
    from tersor.pipeline.evaluate_text import read_text, windows
    from tersor.quantize.calibration import calibration_sequences

    tokenizer = load_tokenizer(source.path)
    length = sequence_length(source.path, calibration.length)
    sequences = calibration_sequences(
        calibration.text, tokenizer, calibration.sequences, length, calibration.seed
    )
    if held_out is None:
        return sequences, None
    return sequences, windows(read_text(held_out), tokenizer, length, str(held_out))


def _identity(goal: Goal, sequences: Tensor, windows: list[Tensor] | None) -> dict[str, Any]:
    """What must be the same for a second run to go on from the first."""
    digest = hashlib.sha256(sequences.numpy().tobytes())
    for window in windows or []:
        digest.update(window.numpy().tobytes())
    return {"goal": repr(goal), "tokens": digest.hexdigest(), "tersor": __version__}


def _search(
    source: Checkpoint,
    output: Output,
    goal: Goal,
    sequences: Tensor,
    windows: list[Tensor] | None,
    device: str,
    on_step: OnStep,
) -> None:
    """Find what reaches the goal, and write the report."""
    opened = open_model(source, device, whole=goal.kind != "method" or windows is not None)
    output.scratch.mkdir(exist_ok=True)
    attempts = Attempts(opened, sequences, windows, output.scratch, device, on_step)
    dtype = next(e.dtype for s in source.shards for n, e in s.tensors.items() if n in opened.places)
    search = Search(attempts, opened.matrices(), HUFFMAN_BITS[dtype])
    others = _other_bytes(source, opened) if goal.kind == "size" else 0
    found = search.run(goal, opened.weights(), others)
    places: dict[str, Any] = {}
    if found.attempt is not None:
        attempts.keep_only(found.attempt)
        store = found.attempt.store()
        places = {n: asdict(p) for n, p in opened.places.items() if store.holds(p.matrix)}
    report = {
        "goal": str(goal),
        "folder": found.attempt.folder.name if found.attempt else None,
        "held_out": asdict(found.attempt.held_out) if found.attempt and found.attempt.held_out else None,
        "layers": [asdict(layer) for layer in found.attempt.layers] if found.attempt else [],
        "tried": [asdict(tried) for tried in found.tried],
        "places": places,
    }
    scratch = output.scratch / "report.part"
    scratch.write_text(json.dumps(report))
    scratch.replace(output.scratch / _REPORT)


def _other_bytes(source: Checkpoint, opened: Opened) -> int:
    """Bytes of weight files that are not matrices: headers, and all other tensors stored without loss."""
    total = sum(header_room(shard, opened.places) for shard in source.shards)
    for shard, name in source.tensors():
        extent = shard.tensors[name]
        if name in opened.places:
            continue
        coded = extent.nbytes
        if wants_compression(extent.dtype, extent.shape):
            coded = min(coded, encode(shard.read(name), extent.dtype, extent.shape).nbytes)
        total += coded
    return total


def _held_out(found: Mapping[str, Any] | None) -> HeldOut | None:
    return HeldOut(**found) if found else None
