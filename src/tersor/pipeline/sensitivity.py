"""Which weights of a model matter: every matrix's error under a method, and pictures of some.

The model is walked block by block as the quantiser walks it, but nothing is changed: each matrix is
quantised on the inputs that the original model gives it, judged by its output error, and forgotten.
Pictures are those of `quantize.sensitivity_map`, the outliers that the method keeps marked in red.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.format.checkpoint import Checkpoint, open_checkpoint
from tersor.format.errors import UsageError
from tersor.format.validate import is_compressed
from tersor.pipeline.device import resolve_device
from tersor.pipeline.near_lossless.goal import Calibration, describe
from tersor.pipeline.near_lossless.opened import load_tokenizer, matrices_of, open_model, sequence_length
from tersor.pipeline.source import local_path

if TYPE_CHECKING:
    from torch import Tensor

    from tersor.quantize.blocks import Target
    from tersor.quantize.method import Method
    from tersor.quantize.walk import Stop


@dataclass(frozen=True)
class LayerSensitivity:
    """One matrix: its error under the method, and how its weights matter.

    error: squared error of the layer's output over the output's own square; outliers: share of weights kept
    as such; above_tenth: share of weights that rounding to 3 bits per row would cost more than a tenth of the
    layer's mean sensitivity (the paper's tau of 0.1); largest: the largest cost, in the same unit.
    """

    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    error: float
    outliers: float
    above_tenth: float
    largest: float
    picture: Path | None


@dataclass(frozen=True)
class Sensitivity:
    """What was looked at, and how; `unreached` are matrices no token of the calibration text came to (experts)."""

    model: Path
    method: str
    layers: tuple[LayerSensitivity, ...]
    unreached: tuple[str, ...] = ()


def sensitivity(
    model: str | Path,
    method: Method,
    calibration: Calibration,
    *,
    layers: Sequence[str] = (),
    pictures: str | Path | None = None,
    device: str = "auto",
    on_layer: Callable[[LayerSensitivity], None] = lambda layer: None,
) -> Sensitivity:
    """Look at the matrices of `model` (directory or Hub id) whose names are or match one of `layers`.

    Names are as checkpoints have them, without ".weight" if you like; * and ? match. `pictures` is a .png file
    when one matrix is meant, or a folder for one file each (folders are made if needed); None draws nothing. Raises
    `UsageError` when nothing matches, and as `compress` does for the text.
    """
    source = open_checkpoint(local_path(str(model)))
    if is_compressed(source):
        raise UsageError(
            f"{source.path}: is compressed; look at the original (`tersor decompress` gives it back)"
        )
    from tersor.quantize.walk import walk

    sequences = _sequences(source, calibration)
    opened = open_model(source, resolve_device(device), whole=False)
    wanted = _chosen(list(matrices_of(opened.model)), layers, source)
    where = _picture_paths(wanted, pictures)
    found: list[LayerSensitivity] = []
    for stop in walk(opened.model, sequences, resolve_device(device), lazy=opened.lazy):
        targets = [target for target in stop.targets() if target.name in wanted]
        if targets:
            for target, h in _observed(stop, targets):
                found.append(_look(target, h, method, where.get(target.name)))
                on_layer(found[-1])
        if len(found) == len(wanted):
            break
    reached = {layer.name for layer in found}
    unreached = tuple(name for name in wanted if name not in reached)
    return Sensitivity(source.path, describe(method), tuple(found), unreached)


def _sequences(source: Checkpoint, calibration: Calibration) -> Tensor:
    from tersor.quantize.calibration import calibration_sequences

    tokenizer = load_tokenizer(source.path)
    length = sequence_length(source.path, calibration.length)
    return calibration_sequences(calibration.text, tokenizer, calibration.sequences, length, calibration.seed)


def _chosen(names: list[str], layers: Sequence[str], source: Checkpoint) -> list[str]:
    """The matrices that are meant; all when nothing is said."""
    if not names:
        raise UsageError(f"{source.path}: has no blocks with matrices to look at")
    patterns = [layer.removesuffix(".weight") for layer in layers]
    plain = {name: name.removesuffix(".weight") for name in names}
    for layer, pattern in zip(layers, patterns, strict=True):
        if not any(fnmatchcase(short, pattern) for short in plain.values()):
            raise UsageError(
                f"{source.path}: no matrix of its blocks is called {layer}; there are {len(names)}, "
                f"such as {names[0]}"
            )
    return [n for n in names if not patterns or any(fnmatchcase(plain[n], p) for p in patterns)]


def _picture_paths(names: list[str], pictures: str | Path | None) -> dict[str, Path]:
    if pictures is None:
        return {}
    path = Path(pictures)
    if path.suffix == ".png":
        if len(names) > 1:
            raise UsageError(f"{path}: is one picture, and {len(names)} matrices are meant; give a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        return dict.fromkeys(names, path)
    path.mkdir(parents=True, exist_ok=True)
    return {name: path / f"{name.removesuffix('.weight')}.png" for name in names}


def _observed(stop: Stop, targets: list[Target]) -> list[tuple[Target, Tensor]]:
    """The matrices that calibration reached, each with its Hessian."""
    observer = stop.observe(targets)
    pairs = [(target, observer.mean(target)) for target in targets]
    return [(target, h) for target, h in pairs if h is not None]


def _look(target: Target, h: Tensor, method: Method, picture: Path | None) -> LayerSensitivity:
    from tersor.codec.quantized.matrix import Quantized
    from tersor.quantize.method import dequantize, quantize
    from tersor.quantize.sensitivity_map import draw, outlier_mask, sensitivity_map, write_png

    weight = target.weight
    q = quantize(weight, h, method, name=target.name)
    e, w = dequantize(q, weight.device).float() - weight.float(), weight.float()
    matters = sensitivity_map(weight, h)
    if picture is not None:
        write_png(picture, draw(matters, outlier_mask(q) if isinstance(q, Quantized) else None))
    rows, columns = q.shape
    return LayerSensitivity(
        target.name,
        (rows, columns),
        q.bits().per_weight,
        float(((e @ h) * e).sum() / ((w @ h) * w).sum().clamp(min=1e-30)),
        q.outliers / (rows * columns),
        float((matters > 0.1).mean()),
        float(matters.max()),
        picture,
    )
