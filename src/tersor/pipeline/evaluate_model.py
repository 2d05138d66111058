"""`tersor eval`: load a model, and the one it was made from, and measure them on local files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tersor.format.errors import UsageError
from tersor.pipeline.device import Arithmetic, resolve_device
from tersor.pipeline.evaluate import Evaluation, Progress, evaluate
from tersor.pipeline.generate import require_transformers
from tersor.pipeline.source import local_path


@dataclass(frozen=True)
class ModelEvaluation:
    """What was measured, of which model, against which, and how."""

    model: Path
    against: Path | None
    device: str
    dtype: str
    length: int
    results: Evaluation


def evaluate_model(
    model: str | Path,
    *,
    against: str | Path | None = None,
    texts: Sequence[str | Path] = (),
    tasks: Sequence[str | Path] = (),
    length: int | None = None,
    limit: int | None = None,
    join_lines: bool = False,
    device: str = "auto",
    dtype: Arithmetic = "auto",
    on_progress: Progress | None = None,
) -> ModelEvaluation:
    """Evaluate the causal language model at `model` (directory or Hub id), plain or compressed.

    Perplexity on every text, divergence from `against` on the same tokens, accuracy on every task file;
    `length`, `limit` and `join_lines` as in `evaluate`, the length by default the model's context, at most
    2048. `dtype` is the arithmetic of both models; in float32 a GPU's perplexity is a CPU's, in 16 bits their
    different order of summation shows. Raises `UsageError` for files that cannot be used.
    """
    if not texts and not tasks:
        raise UsageError("nothing to evaluate on: give --text FILE, --tasks FILE or both")
    if against is not None and not texts:
        raise UsageError("--against compares next-token distributions on a text: give --text FILE too")
    if dtype not in get_args(Arithmetic):
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(get_args(Arithmetic))}")
    transformers = require_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = resolve_device(device)
    path = local_path(str(model))
    loaded, tokenizer = _load(transformers, path, device, dtype)
    context = getattr(loaded.config, "max_position_embeddings", None) or 2048
    if length is not None and not 2 <= length <= context:
        raise UsageError(f"a context of {length} tokens: this model takes 2 to {context}")
    length = length or min(context, 2048)
    reference = local_path(str(against)) if against is not None else None
    original = _load(transformers, reference, device, dtype)[0] if reference is not None else None
    if original is not None and original.config.vocab_size != loaded.config.vocab_size:
        raise UsageError(
            f"{reference}: has another vocabulary than {path}; it is not what that was made from"
        )
    results = evaluate(
        loaded, tokenizer, texts, tasks, original, length, join_lines, limit, progress=on_progress
    )
    arithmetic = str(loaded.dtype).removeprefix("torch.")
    return ModelEvaluation(path, reference, device, arithmetic, length, results)


def _load(transformers: Any, path: Path, device: str, dtype: Arithmetic) -> tuple[Any, Any]:
    if path.is_file():
        raise UsageError(
            f"{path}: is a single file; evaluating needs a model directory with config and tokenizer"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: Transformers cannot load it: {error}") from error
    return loaded.to(device).eval(), tokenizer
