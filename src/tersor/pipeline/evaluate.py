"""How good a compressed model still is: perplexity, distance to the original, zero-shot tasks.

Three questions, from general to particular. *Perplexity* on any text says how well the model predicts;
it needs no reference but moves little. *KL divergence* from the original model's distribution, and how
often both agree on the most likely token, say how far the compressed model strayed from it, and see
small losses long before perplexity does. *Tasks* say what that means in use.

Every result is plain data with its standard error. Nothing here downloads anything: texts and tasks are local files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.pipeline.evaluate_tasks import TaskScore, read_task, score_task
from tersor.pipeline.evaluate_text import Divergence, Perplexity, divergence, perplexity, read_text, windows

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str, int, int], None]
"""Called with what is measured, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Evaluation:
    """The results of one model; only what was asked for."""

    texts: dict[str, Perplexity]
    divergences: dict[str, Divergence]
    tasks: dict[str, TaskScore]


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str | Path] = (),
    tasks: Sequence[str | Path] = (),
    original: nn.Module | None = None,
    length: int = 2048,
    join_lines: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate `model` on text files and task files (.jsonl), by file name.

    `original` is the model it was made from; with it, divergences are measured on the texts too.
    `length` is the context in tokens. `join_lines` joins a text's lines by blank lines, as papers score
    WikiText (which raises its perplexity). `limit` cuts every task to its first rows. Raises
    `UsageError` for files that cannot be used.
    """
    ppl: dict[str, Perplexity] = {}
    kl: dict[str, Divergence] = {}
    scores: dict[str, TaskScore] = {}

    def step(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    for path in map(Path, texts):
        text = read_text(path, join_lines)
        ids = windows(text, tokenizer, length, str(path))
        if original is None:
            ppl[path.name] = perplexity(model, ids, len(text.encode()), step(path.name))
        else:
            ppl[path.name], kl[path.name] = divergence(
                model, original, ids, len(text.encode()), step(path.name)
            )
    for path in map(Path, tasks):
        rows = read_task(path)[:limit]
        scores[path.name] = score_task(model, tokenizer, rows, length, step(path.name))
    return Evaluation(ppl, kl, scores)
