"""Zero-shot accuracy of a model before and after quantising it, task by task, with standard errors.

    python bench/zero_shot.py MODEL --calib TEXT --tasks DIR [--method spqr:4] [--method integers:5] ...

DIR holds the .jsonl files of the SpQR paper's five tasks and LAMBADA (whichever of them are there; tersor eval
describes the rows). The matrices of the blocks are quantised in memory, block by block as `tersor compress`
does it, and the very weights that a checkpoint would give are scored, in float32, on a GPU if there is one.
Prints a table in Markdown, a column per method, each difference also in standard errors of the original's
score; with --out every result is appended to a file as a line of JSON when it is there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers

from tersor.codec.quantized.matrix import Bits
from tersor.pipeline.device import resolve_device
from tersor.pipeline.evaluate import evaluate
from tersor.pipeline.evaluate_tasks import TaskScore
from tersor.pipeline.near_lossless.goal import one_method
from tersor.quantize.calibration import calibration_sequences
from tersor.quantize.stream import Job, quantize_model

TASKS = ("winogrande", "piqa", "hellaswag", "arc_easy", "arc_challenge", "lambada")
SERVED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def quantise(model: Any, tokenizer: Any, method: str, options: argparse.Namespace) -> float:
    """Quantise `model` in place by "family:bits"; bits per weight of its blocks' matrices."""
    family, _, bits = method.partition(":")
    chosen = one_method(family, float(bits)).methods[0]  # type: ignore[arg-type]
    sequences = calibration_sequences(options.calib, tokenizer, options.sequences, options.length)
    served = SERVED[str(model.config.dtype).removeprefix("torch.")]
    job = Job(lambda name: chosen, device=options.device, served=served)
    return reduce(Bits.__add__, (report.bits for report in quantize_model(model, sequences, job))).per_weight


def one_run(method: str | None, files: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Scores of the model as it is, or quantised by `method`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    model.config.dtype = transformers.AutoConfig.from_pretrained(options.model).dtype
    begin, bits = time.process_time(), None
    if method:
        bits = quantise(model, tokenizer, method, options)
    made = time.process_time()
    model.to(options.device)
    scores = evaluate(model, tokenizer, tasks=files, limit=options.limit).tasks
    return {
        "method": method or "original",
        "bits_per_weight": bits,
        "cpu_seconds": {"quantising": made - begin, "scoring": time.process_time() - made},
        "tasks": {name: asdict(score) for name, score in scores.items()},
    }


def cell(found: dict[str, Any], before: dict[str, Any]) -> str:
    """Accuracies of one task, and how far they are from the original's in its standard errors."""
    score, reference = TaskScore(**found), TaskScore(**before)
    parts = []
    for name in ("acc", "acc_norm"):
        value, old, stderr = (
            getattr(score, name),
            getattr(reference, name),
            getattr(reference, f"{name}_stderr"),
        )
        if value is not None:
            away = "" if found is before else f" ({(value - old) / max(stderr, 1e-9):+.1f})"
            parts.append(f"{value:.4f}{f' ± {stderr:.4f}' if found is before else away}")
    return " / ".join(parts)


def main() -> None:
    """Measure the original, then every method."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True, help="text to calibrate on")
    parser.add_argument("--tasks", type=Path, required=True, help="folder of .jsonl task files")
    parser.add_argument(
        "--method", action="append", help="such as spqr:4, gptq:3, integers:5; default spqr:4"
    )
    parser.add_argument("--limit", type=int, help="first rows of every task; default all")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a calibration sequence")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="append results to this file, a line of JSON each")
    options = parser.parse_args()
    options.device = resolve_device(options.device)
    loud: Any = transformers.logging
    loud.set_verbosity_error()
    loud.disable_progress_bar()
    every = sorted(options.tasks.glob("*.jsonl"))
    files = [path for task in TASKS for path in every if path.name.startswith(task)]
    runs: list[dict[str, Any]] = []
    for method in (None, *(options.method or ["spqr:4"])):
        runs.append(one_run(method, files, options))
        if options.out:
            with options.out.open("a") as out:
                out.write(json.dumps(runs[-1]) + "\n")
    heads = [
        f"{r['method']}, {r['bits_per_weight']:.3f} bits" if r["bits_per_weight"] else "original"
        for r in runs
    ]
    print(f"| task | rows | {' | '.join(heads)} |\n|{' --- |' * (len(runs) + 2)}")
    for path in files:
        before = runs[0]["tasks"][path.name]
        row = " | ".join(cell(run["tasks"][path.name], before) for run in runs)
        print(f"| {path.stem} | {before['rows']} | {row} |")


if __name__ == "__main__":
    main()
