"""What each matrix costs at each width, measured.

Two measurements, multiplied. *Where* in the model a matrix sits decides how much its error matters: it is
quantised alone, coarsely, and the KL divergence of the whole model's output is measured on a few windows
of text. *How* its error falls with the width is read off the layer's own output error tr(E H E^T), which
needs no forward pass: the KL of a small error grows in proportion to it. So one divergence per matrix
and one quantisation per matrix and candidate stand for the divergence of every choice.

The predictions add up to what a whole plan will cost only roughly (matrices share directions of error,
and later ones are calibrated on earlier ones). `target.py` therefore measures, and scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.quantize.allocate import Option
from tersor.quantize.blocks import Target
from tersor.quantize.method import Method, dequantize, quantize
from tersor.quantize.stream import Job
from tersor.quantize.walk import walk

LEAST_KL = 1e-12  # nats: float32 cannot see less, and what is below must not look like a gain

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """One matrix under one setting: stored bits, and tr(E H E^T)."""

    method: Method
    bits: int
    error: float


def measure_options(
    model: nn.Module,
    sequences: Tensor,
    windows: Sequence[Tensor],
    candidates: Sequence[Method],
    job: Job,
    lossless_bits: float = 16.0,
    progress: Progress | None = None,
) -> dict[str, list[Option]]:
    """Options of every matrix that `job.choose` accepts (whatever settings it names).

    `sequences` (N, L) calibrate; divergence is measured on `windows` of token ids (1, L), which should
    be other text. `candidates` are tried on every matrix, the first being the coarse one that is probed;
    `lossless_bits` per weight is what not quantising costs. `model` is unchanged afterwards.
    """
    errors, probes = layer_errors(model, sequences, candidates, job)
    costs = probe_divergence(model, windows, probes, progress)
    options: dict[str, list[Option]] = {}
    for name, tried in errors.items():
        weights = probes[name][1].numel()
        slope = costs[name] / max(tried[0].error, 1e-30)
        options[name] = [Option(c.method, c.bits, slope * c.error) for c in tried]
        options[name].append(Option(None, round(lossless_bits * weights), 0.0))
    return options


Probes = dict[str, tuple[Target, Tensor]]  # each matrix, and its values under the coarsest setting


def layer_errors(
    model: nn.Module, sequences: Tensor, candidates: Sequence[Method], job: Job
) -> tuple[dict[str, list[Candidate]], Probes]:
    """Every matrix under every candidate, on the inputs of the original model."""
    errors: dict[str, list[Candidate]] = {}
    probes: Probes = {}
    for stop in walk(model, sequences, job.device):
        targets = [t for t in stop.targets() if job.choose(t.name) is not None]
        observer = stop.observe(targets)
        for target in targets:
            h = observer.mean(target)
            if h is None:
                continue  # what no token reached cannot be judged
            for number, method in enumerate(candidates):
                candidate, served = _try(target, h, method, job)
                errors.setdefault(target.name, []).append(candidate)
                if number == 0:
                    probes[target.name] = target, served
    return errors, probes


def _try(target: Target, h: Tensor, method: Method, job: Job) -> tuple[Candidate, Tensor]:
    """One matrix under one setting, and what it would then be, in host memory."""
    weight = target.weight
    q = quantize(weight, h, method, job.compute, job.served, target.name)
    served = dequantize(q, weight.device)
    e = served.float() - weight.float()
    return Candidate(method, q.bits().total, float(((e @ h) * e).sum())), served.cpu()


def probe_divergence(
    model: nn.Module, windows: Sequence[Tensor], probes: Probes, progress: Progress | None = None
) -> dict[str, float]:
    """KL(original || model with one matrix replaced) in nats per token, for each matrix alone."""
    with torch.no_grad():
        original = [_logprobs(model, window) for window in windows]
        found = {}
        for done, (name, (target, served)) in enumerate(probes.items(), 1):
            kept = target.weight.clone()
            target.weight.copy_(served)
            found[name] = _divergence(original, (_logprobs(model, window) for window in windows))
            target.weight.copy_(kept)
            if progress:
                progress(name, done, len(probes))
    return found


def _logprobs(model: nn.Module, window: Tensor) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=window.to(device), use_cache=False).logits
    return logits[0].float().log_softmax(-1)


def _divergence(original: Sequence[Tensor], other: Iterable[Tensor]) -> float:
    total, count = 0.0, 0
    for p, q in zip(original, other, strict=True):
        total += float((p.exp() * (p - q)).sum())
        count += len(p)
    return max(total / max(count, 1), LEAST_KL)
