"""A whole model of random weights on one GPU: tokens per second, memory, and the same tokens.

    python bench/whole_model.py [--layers 32] [--tokens 256] [--context 2048] [--no-fuse] [--out FILE.json]
    python bench/whole_model.py --shape llama-30b      # 4 bits within 24 GB; no plain model to compare with
    python bench/whole_model.py --dfloat11 decode.ptx  # and DFloat11's method with its own kernel

One model is measured in one process, by the same decode loop (static cache, one CUDA graph per token, batch 1):
plain bfloat16; compressed, `compact` and `fast`, exact and fused; quantised to 4 bits in groups of 32 with 0.5 %
of outliers, embedding lossless, head quantised. "Compiled step": torch compiles the step first, for the plain
model as for ours; exact products then are cuBLAS's still, and what is between them is the compiler's. Compressing
is timed from pinned host memory, tensor by tensor, the copy to the GPU included.

The exact layouts must give the plain model's logits and greedy tokens bit for bit. That is compared with eager
attention and without a graph, because with PyTorch's fused attention not even the plain model repeats its own
tokens from one run to the next.

"DFloat11's method" (`dfloat11_method.py`) is a plain model in the same loop whose blocks, head and embedding are
decoded before they run, by the official kernel (`dfloat11_ptx.py`). It must say what it said with those weights plain.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from dfloat11_method import Method, repeat_first
from random_models import SHAPES, compress_from_host, made, quantized_model

from tersor.nn import lay_out
from tersor.pipeline.decode_loop import DecodeLoop

COMPILED = ", compiled step"
EXACT = "fast, exact"
DFLOAT11 = "DFloat11's method"
PLAIN_EMBEDDING = ", embedding plain"
MEMORY_30B = 24e9  # bytes that the 30B shape may take at 4 bits, everything included


@dataclass
class Run:
    """What is measured how, and the numbers so far."""

    options: argparse.Namespace
    ids: torch.Tensor
    speeds: dict[str, dict[str, float]] = field(default_factory=dict)

    def measure(self, name: str, model: Any, fuse: bool = True) -> None:
        """Tokens per second and prefill, the median of three runs, and peak memory; with a compiled step too."""
        self._measure(name, model, fuse=False)
        if fuse and self.options.fuse:
            self._measure(name + COMPILED, model, fuse=True)

    def _measure(self, name: str, model: Any, fuse: bool) -> None:
        on_gpu = self.options.device != "cpu"
        torch._dynamo.reset()  # what was compiled before holds on to its model
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        loop = DecodeLoop(model, self.options.context, fuse=fuse, options=dict(self.options.compile))
        runs = [loop.run(self.ids, self.options.tokens) for _ in range(4)][1:]
        self.speeds[name] = {
            "tokens_per_second": sorted(r.tokens_per_second for r in runs)[1],
            "prefill_seconds": sorted(r.prefill_seconds for r in runs)[1],
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        }
        print(f"{name}: {self.speeds[name]['tokens_per_second']:.1f} tokens/s", file=sys.stderr, flush=True)

    def said(self, model: Any) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The prompt's last logits and the greedy tokens, with eager attention, without a graph."""
        own = model.config._attn_implementation
        model.set_attn_implementation("eager")
        decoded = DecodeLoop(model, self.options.context, graph=False).run(self.ids, self.options.tokens)
        with torch.inference_mode():
            logits = model(input_ids=self.ids, use_cache=False, logits_to_keep=1).logits
        model.set_attn_implementation(own)
        return logits.view(torch.int16), decoded.tokens

    def table(self) -> str:
        """The numbers, and their ratios to plain bfloat16 with the same kind of step."""
        lines = ["| | tokens/s | x bf16 | prefill ms | peak GB | x bf16 |", "|---|---|---|---|---|---|"]
        for name, r in self.speeds.items():
            other = self.speeds.get("bfloat16" + COMPILED * name.endswith(COMPILED))
            speed, memory = ("", "")
            if other is not None:
                speed = f"{r['tokens_per_second'] / other['tokens_per_second']:.3f}"
                memory = f"{r['peak_bytes'] / max(other['peak_bytes'], 1):.3f}"
            lines.append(
                f"| {name} | {r['tokens_per_second']:.1f} | {speed} | {1e3 * r['prefill_seconds']:.1f} "
                f"| {r['peak_bytes'] / 1e9:.2f} | {memory} |"
            )
        if EXACT in self.speeds and DFLOAT11 in self.speeds:
            lines += ["", f"{EXACT} is {self._faster(DFLOAT11)}, {self._faster(DFLOAT11 + PLAIN_EMBEDDING)}"]
        return "\n".join(lines)

    def _faster(self, other: str) -> str:
        ratio = self.speeds[EXACT]["tokens_per_second"] / self.speeds[other]["tokens_per_second"]
        return f"{ratio:.3f} times as fast as {other}"


def lossless(run: Run, model: Any) -> tuple[float, dict[str, bool]]:
    """Measure the plain model's compressed forms; seconds of compressing, and what said the same."""
    same, plain = {}, run.said(model)
    seconds = compress_from_host(model, run.options.device)
    for name, layout, exact in (
        ("compact", "compact", True),
        (EXACT, "fast", True),
        ("fast", "fast", False),
    ):
        if run.options.only == "exact" and not exact:
            continue
        lay_out(model, layout, exact, device_type=run.options.device)
        run.measure(name, model)
        if exact:
            logits, tokens = run.said(model)
            same[name] = torch.equal(logits, plain[0]) and tokens == plain[1]
    return seconds, same


def dfloat11(run: Run, model: Any) -> dict[str, bool]:
    """Measure DFloat11's method; whether it said the same as the plain model."""
    from dfloat11_ptx import official

    same = {}
    repeat_first(model.model.layers)
    plain = run.said(model)
    method = Method(model, official(run.options.dfloat11))
    for name in (DFLOAT11 + PLAIN_EMBEDDING, DFLOAT11):
        if name == DFLOAT11:
            method.decode_before(model.model.embed_tokens)
        run.measure(name, model, fuse=False)
        logits, tokens = run.said(model)
        same[name] = torch.equal(logits, plain[0]) and tokens == plain[1]
    return same


def option(text: str) -> tuple[str, bool | int]:
    """KEY=VALUE, the value a number, of the type that torch's compiler wants for this key."""
    key, _, value = text.partition("=")
    kind = type(torch._inductor.config.shallow_copy_dict()[key])
    return key, bool(int(value)) if kind is bool else int(value)


def main() -> int:
    """Measure and print; 0 if the exact layouts said the same and memory was kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, for a quick look")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--device", default="cuda", help="cpu runs everything, slowly, to see that it works")
    parser.add_argument("--no-fuse", dest="fuse", action="store_false", help="without compiled steps")
    parser.add_argument(
        "--compile", metavar="KEY=VALUE", action="append", type=option, default=[],
        help="an option of torch's compiler, as combo_kernels=1 or triton.enable_pdl=1; for all rows",
    )  # fmt: skip
    parser.add_argument("--only", choices=["lossless", "exact", "quantized"], help="some rows, and the plain")
    parser.add_argument(
        "--dfloat11", type=Path, metavar="decode.ptx", help="their kernel; measures their method"
    )
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    if o.dfloat11 and o.device == "cpu":
        parser.error("--dfloat11 needs a GPU")
    torch.manual_seed(0)
    shape = SHAPES[o.shape]
    config = shape.config(o.layers, o.context)
    run = Run(o, torch.randint(0, shape.vocabulary, (1, o.prompt), device=o.device))
    seconds, same, kept = None, {}, True
    if o.shape != "llama-30b":
        model = made(config, o.device)
        run.measure("bfloat16", model)
        if o.only != "quantized":
            seconds, same = lossless(run, model)
        del model
    if o.only in (None, "quantized"):
        gc.collect()
        run.measure("4 bits", quantized_model(config, o.device))
        if o.shape == "llama-30b":
            kept = all(speed["peak_bytes"] < MEMORY_30B for speed in run.speeds.values())
    if o.dfloat11:
        gc.collect()
        same |= dfloat11(run, made(config, o.device))

    print(
        f"{o.shape}, {config.num_hidden_layers} layers, prompt {o.prompt}, {o.tokens} tokens, cache {o.context}"
    )
    print(run.table())
    if seconds is not None:
        print(f"compressed from pinned host memory in {seconds:.2f} s")
    if same:
        print(f"logits and {o.tokens} greedy tokens as plain bfloat16's, eager attention: {same}")
    if o.shape == "llama-30b":
        print(f"within {MEMORY_30B / 1e9:.0f} GB: {kept}")
    if o.out:
        o.out.write_text(
            json.dumps({"compress_seconds": seconds, "same": same, "speeds": run.speeds}, indent=1)
        )
    return 0 if all(same.values()) and kept else 1


if __name__ == "__main__":
    sys.exit(main())
