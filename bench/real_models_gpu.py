"""Real models on a GPU: the same tokens in exact mode, the same perplexity in fused mode, bits per weight there.

    python bench/real_models_gpu.py MODEL_DIR [MODEL_DIR ...] [--text FILE] [--length 2048] [--bytes N]

Each bfloat16 causal language model is compressed, loaded by `from_pretrained(device_map="cuda")` and compared
with the plain model on the same GPU: 64 greedy tokens for each of two prompts, with eager attention, in the
exact layouts; and, with `--text`, the perplexity of the fused products. Prints a table in
Markdown; exit status 1 if an exact layout said anything else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tersor
from tersor.integrations.transformers import TersorConfig
from tersor.nn import CompressedLinear
from tersor.pipeline.evaluate_text import perplexity, windows

PROMPTS = ("The river rises in the mountains of", "Once upon a time there was")
FORMS = {
    "fast, exact": TersorConfig(layout="fast", exact=True),
    "compact": TersorConfig(layout="compact"),
    "fast": TersorConfig(layout="fast"),
}


def said(model: Any, tokenizer: Any) -> list[list[int]]:
    """64 greedy tokens for each prompt, with eager attention."""
    model.set_attn_implementation("eager")
    inputs = [tokenizer(p, return_tensors="pt").to("cuda") for p in PROMPTS]
    tokens = [model.generate(**i, max_new_tokens=64, do_sample=False)[0].tolist() for i in inputs]
    model.set_attn_implementation("sdpa")
    return tokens


def bits_per_weight(model: Any) -> float:
    """Of the linear layers in the `fast` layout, everything counted."""
    layers = [m for m in model.modules() if isinstance(m, CompressedLinear)]
    parameters = [p for m in layers for name, p in m.named_parameters() if not name.endswith("bias")]
    held = {id(p): p.nbytes for p in parameters}  # layers with one input share a matrix
    return 8 * sum(held.values()) / sum(m.in_features * m.out_features for m in layers)


def main() -> int:
    """Measure every model; 0 if the exact layouts say the same as the plain model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--bytes", type=int, default=400_000, help="of the text")
    o = parser.parse_args()
    good = True
    print(
        "| model | form | same 2 x 64 tokens | perplexity | bits per weight of linear layers |\n"
        + "|---" * 5
        + "|"
    )
    for path in o.models:
        tokenizer = AutoTokenizer.from_pretrained(path)
        plain = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map="cuda").eval()
        length = min(o.length, plain.config.max_position_embeddings)
        text = o.text.read_bytes()[: o.bytes].decode(errors="ignore") if o.text else ""
        ids = windows(text, tokenizer, length) if text else []

        def judged(model: Any, ids: list[torch.Tensor] = ids, size: int = len(text.encode())) -> str:
            return f"{perplexity(model, ids, size).perplexity:.6f}" if ids else "–"

        wanted = said(plain, tokenizer)
        print(f"| {path.name} | plain | | {judged(plain)} | 16 |", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            made = tersor.compress(path, Path(scratch) / "c").path
            for name, form in FORMS.items():
                model = AutoModelForCausalLM.from_pretrained(
                    made, dtype="auto", device_map="cuda", quantization_config=form
                ).eval()
                same = said(model, tokenizer) == wanted
                good &= same or name == "fast"
                print(
                    f"| {path.name} | {name} | {'yes' if same else 'NO'} | {judged(model)} "
                    f"| {bits_per_weight(model):.3f} |",
                    flush=True,
                )
                del model
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
