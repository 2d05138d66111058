"""The whole lossless job on real models: sizes, proof, and the distance to the entropy bound.

    python bench/real_models.py MODEL_DIR [MODEL_DIR ...]

For each directory: compress, verify against the original, decompress and compare every tensor's
bytes, generate (where it is a causal language model) from both and compare tokens, and for
every tensor of a hundred thousand elements or more compare bits per weight with the entropy bound: the
coded symbol at its Shannon entropy, sign and mantissa as they are, no index. Prints a table in
Markdown; exit status 1 if anything was not the same.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np

import tersor
from tersor.format.checkpoint import open_checkpoint
from tersor.pipeline.generate import Generator

LARGE = 100_000
PROMPTS = ("The river rises in the mountains of", "Once upon a time there was")


def same_tensors(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same names, dtypes, shapes and bytes."""
    left = {n: s for s, n in open_checkpoint(a).tensors()}
    right = {n: s for s, n in open_checkpoint(b).tensors()}
    return left.keys() == right.keys() and all(
        (s.tensors[n].dtype, s.tensors[n].shape) == (right[n].tensors[n].dtype, right[n].tensors[n].shape)
        and np.array_equal(s.read(n), right[n].read(n))
        for n, s in left.items()
    )


def same_tokens(original: Path, compressed: Path) -> str:
    """Whether greedy generation agrees, for causal language models with a tokenizer."""
    architectures = json.loads((original / "config.json").read_text()).get("architectures") or [""]
    if not architectures[0].endswith("ForCausalLM") or not (original / "tokenizer.json").exists():
        return "–"
    a, b = Generator(original, "cpu"), Generator(compressed, "cpu")
    tokens = [[g.generate(p, max_new_tokens=64).tokens for p in PROMPTS] for g in (a, b)]
    return "yes" if tokens[0] == tokens[1] else "NO"


def main(models: list[Path]) -> int:
    """Measure every model; 0 if all is the same."""
    print(
        "| model | dtype | bytes | compressed | of original | bits per weight | worst large tensor above its bound "
        "| verified | restored | same tokens |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    good = True
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            made = tersor.compress(model, Path(scratch) / "c")
            proof = tersor.verify(made.path, against=model)
            tersor.decompress(made.path, Path(scratch) / "d")
            restored = same_tensors(model, Path(scratch) / "d")
            tokens = same_tokens(model, made.path)
            summary = tersor.inspect_model(made.path)
            large = [t for t in summary.tensors if math.prod(t.shape) >= LARGE and t.codec == "huffman"]
            large = large or [max(summary.tensors, key=lambda t: t.original_bytes)]
            reports = [tersor.inspect_tensor(made.path, t.name) for t in large]
            gaps = [(r.summary.bits_per_weight - r.bound_bits, r.summary.name) for r in reports]
            weights = sum(math.prod(t.shape) for t in summary.tensors)
            dtype = max(summary.tensors, key=lambda t: t.original_bytes).dtype
            good &= proof.ok and restored and tokens != "NO"
            print(
                f"| {model.name} | {dtype} | {made.original_bytes:,} | {made.stored_bytes:,} | "
                f"{100 * made.ratio:.2f} % | "
                f"{8 * made.stored_bytes / weights:.3f} | {max(gaps)[0]:.3f} ({max(gaps)[1]}, of {len(large)}) | "
                f"{'ok' if proof.ok else 'NO'} | {'yes' if restored else 'NO'} | {tokens} |",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main([Path(a) for a in sys.argv[1:]]))
