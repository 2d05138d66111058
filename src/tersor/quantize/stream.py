"""Quantising a model block by block.

    for each block:   sum Hessians over a forward pass of every sequence
                      quantise its matrices, put the dequantised weights in their place
                      the outputs of the quantised block are the inputs of the next

Parallel blocks, mixtures of experts and several stacks (encoder, decoder) need nothing special:
matrices are found by structure and their inputs by watching.

With `true_sequential` the matrices of a block are quantised in the order of their use, each after the
error of the ones before it is in its inputs, at the price of one more forward pass per step.

Given a `Store`, every finished matrix is kept at once and not computed again when the job is repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.codec.quantized.matrix import Bits
from tersor.format.errors import UsageError
from tersor.quantize import captured
from tersor.quantize.blocks import Target
from tersor.quantize.lazy import Lazy
from tersor.quantize.method import Method, Result, dequantize, quantize
from tersor.quantize.observe import Observer
from tersor.quantize.store import Store
from tersor.quantize.walk import Run, Stop, walk

log = logging.getLogger(__name__)

Choose = Callable[[str], Method | None]


@dataclass(frozen=True)
class LayerReport:
    """What happened to one matrix."""

    name: str
    shape: tuple[int, int]
    bits: Bits
    outliers: float
    """Share of weights kept as outliers."""
    error: float | None
    """Squared error of the layer's output over the output's own square; None when taken from a store."""
    tokens: int
    """Calibration tokens that reached it."""
    seconds: float


@dataclass(frozen=True)
class Job:
    """How to quantise a model; everything but the model and the text."""

    choose: Choose
    """How to quantise each matrix, by name; None leaves it as it is."""
    device: torch.device | str = "cpu"
    served: torch.dtype | None = None
    """Type of the weights when served, if the model holds them in a wider one."""
    compute: torch.dtype = torch.float32
    true_sequential: bool = False
    store: Store | None = None
    lazy: Lazy | None = None
    """What gives blocks their weights when the model has none; results are then in the store only."""
    progress: Callable[[LayerReport], None] | None = None


def quantize_model(
    model: nn.Module, sequences: Tensor, job: Job, run: Run | None = None
) -> list[LayerReport]:
    """Quantise the blocks of `model` in place, calibrated on `sequences` (N, L).

    `run` feeds one sequence (1, L) to the model; by default as `input_ids` without a cache. The weights
    afterwards are the dequantised ones; the codes go to `job.store`. Raises `UsageError` for weights or
    activations that are not finite, and for a model without blocks.
    """
    reports: list[LayerReport] = []
    try:
        for stop in walk(model, sequences, job.device, run, job.lazy):
            with torch.no_grad():
                reports += _block(stop, job)
    finally:
        captured.forget()
    return reports


def _block(stop: Stop, job: Job) -> list[LayerReport]:
    """Quantise the chosen matrices of one block."""
    targets = {t.name: t for t in stop.targets() if job.choose(t.name) is not None}
    known = {n: q for n in targets if job.store and (q := job.store.get(n))}
    reports: list[LayerReport] = []
    if job.true_sequential:  # what is done already was done before the rest was looked at
        reports += [_place(targets[n], q, job) for n, q in known.items()]
    pending = [n for n in targets if n not in known]
    while pending:
        sought = {
            id(targets[n].parameter) for n in pending
        }  # done slices still belong to the pool of the rest
        observer = stop.observe([t for t in targets.values() if id(t.parameter) in sought])
        steps = [step for group in observer.groups() if (step := [n for n in group if n in pending])]
        if job.true_sequential and len(steps) > 1:
            now = steps[0]
        else:
            used = [n for step in steps for n in step]
            now = used + _idle(targets, {*used, *known}, [n for n in pending if n not in used])
            pending = now
        reports += [_quantize(targets[n], observer, job) for n in now]
        pending = [n for n in pending if n not in now]
    if not job.true_sequential:
        reports += [_place(targets[n], q, job) for n, q in known.items()]
    return reports


def _idle(targets: dict[str, Target], used: set[str], unused: list[str]) -> list[str]:
    """Matrices no token reached that are to be quantised all the same.

    A linear layer, or an expert's slice when some other slice of its parameter was applied as a
    matrix: that one is just rarely chosen. A parameter of which no slice was is used in another way.
    """
    applied = {id(targets[name].parameter) for name in used}
    idle = []
    for name in unused:
        if targets[name].index is None or id(targets[name].parameter) in applied:
            log.warning("%s: no calibration token reached it; it is calibrated on its siblings, if any", name)
            idle.append(name)
        else:
            log.warning("%s: not applied as a matrix of (outputs, inputs); left as it is", name)
    return idle


def _quantize(target: Target, observer: Observer, job: Job) -> LayerReport:
    begin = time.perf_counter()
    method = job.choose(target.name)
    assert method is not None
    weight, hessian = target.weight, observer.hessian(target.name)
    h = observer.mean(target)
    if h is None:
        h = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)
    if not torch.isfinite(h).all():
        raise UsageError(f"{target.name}: its inputs on the calibration text are NaN or infinite")
    q = quantize(weight, h, method, job.compute, job.served, target.name)
    if job.store:
        job.store.put(target.name, q)
    before = weight.float().clone()
    weight.copy_(dequantize(q, weight.device))
    error = _energy(weight.float() - before, h) / max(_energy(before, h), 1e-30)
    return _report(target, q, error, hessian.count, time.perf_counter() - begin, job)


def _energy(w: Tensor, h: Tensor) -> float:
    """tr(W H W^T)."""
    return float(((w @ h) * w).sum())


def _place(target: Target, q: Result, job: Job) -> LayerReport:
    """Put a matrix that was quantised earlier into the model."""
    target.weight.copy_(dequantize(q, target.weight.device))
    return _report(target, q, None, 0, 0.0, job)


def _report(
    target: Target, q: Result, error: float | None, tokens: int, seconds: float, job: Job
) -> LayerReport:
    share = q.outliers / max(q.codes.size, 1)
    report = LayerReport(target.name, q.shape, q.bits(), share, error, tokens, seconds)
    if job.progress:
        job.progress(report)
    return report
