"""Bits against loss: one model quantised in many ways, each measured on the same text.

    python bench/near_lossless.py MODEL --calib TEXT [--calib TEXT] --text TEXT [--every 4] METHOD [METHOD ...]

A METHOD is a family, its bits and perhaps changed settings: spqr:4, gptq:3:group=128, rtn:4, integers:4.5,
spqr:4:group=32,rows=64,stat_bits=4. Each quantises the matrices of the blocks in memory, as `tersor compress`
does it; the weights that a checkpoint would give are compared with the original's, in float32, on windows
of --length tokens of the text, every n-th of them. Prints the rows of a table in Markdown as they come: bits
per weight with everything counted and their parts, perplexity, excess loss, KL divergence, both in nats with
standard errors, how often the likeliest token is the same, and CPU seconds of quantising.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers

from tersor.codec.quantized.matrix import Bits
from tersor.pipeline.device import resolve_device
from tersor.pipeline.evaluate_text import divergence, read_text, windows
from tersor.pipeline.near_lossless.goal import one_method
from tersor.quantize.calibration import draw, read_documents, tokenize
from tersor.quantize.method import Method
from tersor.quantize.stream import Job, quantize_model

SERVED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def method(spelled: str) -> Method:
    """The settings of a METHOD; every field of the family's dataclass can be changed."""
    family, bits, *changed = spelled.split(":")
    found: Any = one_method(family, float(bits)).methods[0]  # type: ignore[arg-type]
    changes = dict(part.split("=") for part in changed[0].split(",")) if changed else {}
    return replace(found, **{name: _value(text) for name, text in changes.items()})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text if text != "inf" else float("inf")


def measure(
    original: Any, spelled: str, sequences: torch.Tensor, ids: list[torch.Tensor], job: Job
) -> dict[str, Any]:
    """Quantise a copy of the model and compare it with the original."""
    chosen = method(spelled)
    model = copy.deepcopy(original)
    begin = time.process_time()
    reports = quantize_model(model, sequences, replace(job, choose=lambda name: chosen))
    seconds = time.process_time() - begin
    bits = reduce(Bits.__add__, (report.bits for report in reports))
    ppl, far = divergence(model, original, ids, 1)
    return {
        "method": spelled,
        "bits": [part / bits.weights for part in (bits.total, bits.codes, bits.statistics, bits.outliers)],
        "perplexity": ppl.perplexity,
        "cpu_seconds": seconds,
        **asdict(far),
    }


def row(r: dict[str, Any]) -> str:
    """A line of the table."""
    total, codes, statistics, outliers = r["bits"]
    return (
        f"| {r['method']} | {total:.3f} | {codes:.3f} + {statistics:.3f} + {outliers:.3f} | {r['perplexity']:.2f} "
        f"| {r['excess_loss']:.4f} ± {r['excess_loss_stderr']:.4f} | {r['kl']:.5f} ± {r['kl_stderr']:.5f} "
        f"| {100 * r['same_top']:.1f} % | {r['cpu_seconds']:.0f} s |"
    )


def main() -> None:
    """Measure every method."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("methods", nargs="+", metavar="METHOD")
    parser.add_argument("--calib", type=Path, action="append", required=True)
    parser.add_argument("--text", type=Path, required=True, help="to measure on")
    parser.add_argument("--every", type=int, default=1, help="measure on every n-th window")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--true-sequential", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="append results to this file, a line of JSON each")
    options = parser.parse_args()
    device = resolve_device(options.device)
    loud: Any = transformers.logging
    loud.set_verbosity_error()
    loud.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    served = SERVED[str(transformers.AutoConfig.from_pretrained(options.model).dtype).removeprefix("torch.")]
    original: Any = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    original.eval().to(device)
    tokens = torch.cat([tokenize(read_documents(path), tokenizer) for path in options.calib])
    sequences = draw(tokens, options.sequences, options.length, options.seed)
    ids = windows(read_text(options.text), tokenizer, options.length)[:: options.every]
    job = Job(lambda name: None, device=device, served=served, true_sequential=options.true_sequential)
    print(
        "| method | bits per weight | codes + statistics + outliers | perplexity | excess loss, nats | KL, nats |",
        end="",
    )
    print(" same top token | quantising |\n| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for spelled in options.methods:
        found = measure(original, spelled, sequences, ids, job)
        print(row(found), flush=True)
        if options.out:
            with options.out.open("a") as out:
                out.write(
                    json.dumps({**found, "options": {k: str(v) for k, v in vars(options).items()}}) + "\n"
                )


if __name__ == "__main__":
    main()
