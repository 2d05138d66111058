"""Zero-shot tasks from local jsonl files, scored as lm-eval scores them.

A row becomes pairs of (context, continuation), one per choice; the model's answer is the continuation
with the largest log-likelihood (`acc`), or the largest per character (`acc_norm`), which does not favour
short answers. The kind of a row shows in its fields:

==============================  ================================================================
WinoGrande                      `context_options`, `continuation`, `gold`: the *context* varies
HellaSwag                       `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`
LAMBADA                         `context`, `continuation`: right when greedy decoding gives it
ARC, PIQA, OpenBookQA, BoolQ    `query`, `choices`, `gold`; 'Answer:' follows a query that lacks it
==============================  ================================================================
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.format.errors import UsageError
from tersor.pipeline.evaluate_likelihood import Likelihood, likelihood

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Row:
    """One question: pairs to score, and the right one. A single pair is right when it is greedy."""

    pairs: list[tuple[str, str]]
    gold: int


@dataclass(frozen=True)
class TaskScore:
    """Accuracy over the rows of a task, with standard errors; None where it makes no sense."""

    rows: int
    acc: float
    acc_stderr: float
    acc_norm: float | None
    acc_norm_stderr: float | None
    perplexity: float | None  # of the continuation, for single-pair tasks


def read_task(path: str | Path) -> list[Row]:
    """The rows of a task file. Raises `UsageError`, naming the line that cannot be understood."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the task {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(parse_row(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise UsageError(f"{path}, line {number}: not a row of a known task ({error})") from error
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return rows


def parse_row(row: dict[str, Any]) -> Row:
    """One line of a task file as pairs; raises `KeyError` or `ValueError` for unknown kinds."""
    if "context_options" in row:
        pairs = [(context, " " + row["continuation"]) for context in row["context_options"]]
        gold = int(row["gold"])
    elif "endings" in row:
        context = clean_hellaswag(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        pairs = [(context, " " + clean_hellaswag(ending)) for ending in row["endings"]]
        gold = int(row["label"])
    elif "context" in row:
        pairs, gold = [(row["context"], " " + row["continuation"])], 0
    else:
        query = row["query"] + ("Answer:" if row["query"].endswith("\n") else "")
        pairs = [(query, " " + choice) for choice in row["choices"]]
        gold = int(row["gold"])
    if not 0 <= gold < len(pairs):
        raise ValueError(f"the right answer {gold} is none of {len(pairs)} choices")
    return Row(pairs, gold)


def clean_hellaswag(text: str) -> str:
    """lm-eval's cleaning of WikiHow marks."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def score_task(
    model: nn.Module,
    tokenizer: Any,
    rows: list[Row],
    length: int,
    step: Callable[[int, int], None] | None = None,
) -> TaskScore:
    """Score every row; contexts longer than `length` tokens lose their beginning."""
    flat = [pair for row in rows for pair in row.pairs]
    scores = iter(likelihood(model, tokenizer, flat, length, step=step))
    found = [[next(scores) for _ in row.pairs] for row in rows]
    if all(len(row.pairs) == 1 for row in rows):
        greedy = [float(scored[0].greedy) for scored in found]
        loss = -sum(scored[0].logprob for scored in found) / len(found)
        return TaskScore(len(rows), *_mean(greedy), None, None, math.exp(min(loss, 700.0)))
    plain = [float(_best(s, row, by_length=False) == row.gold) for s, row in zip(found, rows, strict=True)]
    if all(len({continuation for _, continuation in row.pairs}) == 1 for row in rows):
        return TaskScore(len(rows), *_mean(plain), None, None, None)  # equal lengths: nothing to normalise
    norm = [float(_best(s, row, by_length=True) == row.gold) for s, row in zip(found, rows, strict=True)]
    return TaskScore(len(rows), *_mean(plain), *_mean(norm), None)


def _best(scores: list[Likelihood], row: Row, by_length: bool) -> int:
    """The choice of the model; the first of equals."""
    # length in characters without the space in front, as in lm-eval
    lengths = [len(c) - 1 if by_length else 1 for _, c in row.pairs]
    values = [s.logprob / max(n, 1) for s, n in zip(scores, lengths, strict=True)]
    return values.index(max(values))


def _mean(x: list[float]) -> tuple[float, float]:
    """Mean and its standard error (sample variance)."""
    n, mean = len(x), sum(x) / len(x)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in x) / (n - 1) / n) if n > 1 else math.nan
