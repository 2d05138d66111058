"""Perplexity and divergence on a text.

The text is tokenised whole, without begin and end marks, and cut into windows of the context length
that do not overlap; the last may be shorter. A window's first token has no context and is not scored.
This is the convention of the GPTQ and SpQR papers.

Standard errors take windows, not tokens, as the independent unit: neighbouring tokens are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.format.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text."""

    tokens: int  # scored
    loss: float  # nats per token
    loss_stderr: float
    perplexity: float
    bits_per_byte: float


@dataclass(frozen=True)
class Divergence:
    """How far a model's next-token distributions are from the original's, KL(original || model) in nats."""

    tokens: int
    kl: float
    kl_stderr: float
    kl_99: float  # 99 % of tokens lie below
    kl_max: float
    same_top: float  # share of tokens where both find the same token most likely
    same_top_stderr: float
    original_loss: float  # of the original on the same tokens, nats per token
    excess_loss: float  # of the model over the original: relative perplexity loss is exp(excess) - 1
    excess_loss_stderr: float  # smaller than either loss's, since both read the same tokens


def read_text(path: str | Path, join_lines: bool = False) -> str:
    """A text file as it is, or with `join_lines` as papers score WikiText."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the text {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text: byte {error.start} is not UTF-8") from error
    return join_wikitext(text) if join_lines else text


def join_wikitext(text: str) -> str:
    """The lines of WikiText as the rows of its data set, joined by blank lines: the text papers score."""
    lines = text.split("\n")[:-1]
    return "\n\n".join("" if line == " " else line + "\n" for line in lines)


def windows(text: str, tokenizer: Any, length: int, name: str = "the text") -> list[Tensor]:
    """The text as windows (1, <= length) of token ids, each of at least 2."""
    import torch

    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise UsageError(f"{name} has {len(ids)} tokens; at least 2 are needed to score one")
    cut = [torch.tensor([ids[i : i + length]]) for i in range(0, len(ids), length)]
    return [window for window in cut if window.shape[1] > 1]


def perplexity(model: nn.Module, ids: list[Tensor], size: int, step: Step | None = None) -> Perplexity:
    """Perplexity over windows of tokens of a text of `size` bytes."""
    import torch

    losses = _per_token(ids)
    for n, window in enumerate(ids):
        with torch.no_grad():
            losses[n].copy_(_losses(_logprobs(model, window), window))
        if step:
            step(n + 1, len(ids))
    return _perplexity(losses, ids, size)


def divergence(
    model: nn.Module, original: nn.Module, ids: list[Tensor], size: int, step: Step | None = None
) -> tuple[Perplexity, Divergence]:
    """Perplexity of `model`, and its divergence from `original`, over the same windows."""
    import torch

    losses, reference, kl, same = (_per_token(ids) for _ in range(4))
    for n, window in enumerate(ids):
        with torch.no_grad():
            q, p = _logprobs(model, window), _logprobs(original, window)
            p = p.to(q.device)
            losses[n].copy_(_losses(q, window))
            reference[n].copy_(_losses(p, window))
            kl[n].copy_((p.exp() * (p - q)).sum(-1))
            same[n].copy_(p.argmax(-1) == q.argmax(-1))
        if step:
            step(n + 1, len(ids))
    every = torch.cat(kl)
    return _perplexity(losses, ids, size), Divergence(
        tokens=len(every),
        kl=float(every.mean()),
        kl_stderr=_stderr(kl),
        kl_99=float(every.kthvalue(max(1, math.ceil(0.99 * len(every)))).values),
        kl_max=float(every.max()),
        same_top=float(torch.cat(same).mean()),
        same_top_stderr=_stderr(same),
        original_loss=float(torch.cat(reference).mean()),
        excess_loss=float((torch.cat(losses) - torch.cat(reference)).mean()),
        excess_loss_stderr=_stderr([a - b for a, b in zip(losses, reference, strict=True)]),
    )


def _logprobs(model: nn.Module, window: Tensor) -> Tensor:
    """Log-probabilities (L - 1, V) in float32 of every token that has context."""
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=window.to(device), use_cache=False).logits
    return logits[0, :-1].float().log_softmax(-1)


def _losses(logprobs: Tensor, window: Tensor) -> Tensor:
    targets = window[0, 1:, None].to(logprobs.device)
    return -logprobs.gather(-1, targets)[:, 0]


def _per_token(ids: list[Tensor]) -> list[Tensor]:
    """Room for one number per scored token. Made before the loop: small tensors that outlive large ones
    would split the heap, and host memory would grow with the text."""
    import torch

    return [torch.empty(window.shape[1] - 1, dtype=torch.float64) for window in ids]


def _perplexity(losses: list[torch.Tensor], ids: list[Tensor], size: int) -> Perplexity:
    import torch

    every = torch.cat(losses)
    loss = float(every.mean())
    tokens = sum(window.shape[1] for window in ids)  # the unscored ones are taken to cost the mean
    return Perplexity(
        len(every),
        loss,
        _stderr(losses),
        math.exp(min(loss, 700.0)),
        loss * tokens / math.log(2) / max(size, 1),
    )


def _stderr(by_window: list[torch.Tensor]) -> float:
    """Standard error of the mean over all tokens, windows being independent (ratio estimator)."""
    import torch

    if len(by_window) < 2:
        return math.nan
    sums = torch.stack([x.sum() for x in by_window])
    counts = torch.tensor([float(len(x)) for x in by_window], dtype=torch.float64)
    residual = sums - counts * (sums.sum() / counts.sum())
    n = len(by_window)
    return float((residual.square().sum() * n / (n - 1)).sqrt() / counts.sum())
