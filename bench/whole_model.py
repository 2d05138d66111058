"""A whole model of Llama-3.1-8B's shape on one GPU: tokens per second, memory, and the same tokens.

    python bench/whole_model.py [--layers 32] [--tokens 256] [--context 2048] [--fuse] [--out FILE.json]

Random weights (sigma 0.02): they serve for speed and memory. One model is measured in one process,
by the same decode loop (static cache, one CUDA graph per token, batch 1), as plain bfloat16 and
compressed: `compact` and `fast`, exact and fused. With `--fuse` torch also compiles the step, for
the plain model and the fused one. Compressing is timed from pinned host memory, tensor by tensor,
the copy to the GPU included.

The exact layouts must give the plain model's logits and greedy tokens bit for bit. That is compared
with eager attention and without a graph, because with PyTorch's fused attention not even the plain
model repeats its own tokens from one run to the next.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.manifest import TensorEntry
from tersor.nn import compress, lay_out
from tersor.pipeline.decode_loop import DecodeLoop


def plain_model(layers: int, context: int) -> Any:
    """Llama-3.1-8B's shape, random weights, bfloat16, on the GPU."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=max(context, 8192),
        rms_norm_eps=1e-5, rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def compress_from_host(model: Any) -> float:
    """Compress every linear and embedding weight, each brought from host memory; returns the seconds."""
    host = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            host[name] = module.weight.detach().cpu().pin_memory()
            module.weight = None
    torch.cuda.synchronize()
    started = time.perf_counter()
    for name, weight in host.items():
        tiles, offsets, book = torch.ops.tersor.huffman_encode(weight.to("cuda", non_blocking=True))
        entry = TensorEntry(CODEC_HUFFMAN, "BF16", tuple(weight.shape), "0" * 64)
        parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
        compress(model.get_submodule(name), "weight", entry, parts)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def speed(model: Any, ids: torch.Tensor, tokens: int, context: int, fuse: bool = False) -> dict[str, float]:
    """Tokens per second and prefill of the median of three runs, and peak memory."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loop = DecodeLoop(model, context, fuse=fuse)
    runs = sorted((loop.run(ids, tokens) for _ in range(4)), key=lambda r: r.decode_seconds)
    return {
        "tokens_per_second": runs[1].tokens_per_second,
        "prefill_seconds": sorted(r.prefill_seconds for r in runs)[1],
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def said(model: Any, ids: torch.Tensor, tokens: int, context: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The prompt's last logits and the greedy tokens, with eager attention, without a graph."""
    model.set_attn_implementation("eager")
    decoded = DecodeLoop(model, context, graph=False).run(ids, tokens)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    model.set_attn_implementation("sdpa")
    return logits.view(torch.int16), decoded.tokens


def main() -> int:
    """Measure and print; 0 if the exact layouts said the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--fuse", action="store_true", help="also with the step compiled by torch")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    torch.manual_seed(0)
    model = plain_model(o.layers, o.context)
    ids = torch.randint(0, 128256, (1, o.prompt), device="cuda")
    speeds = {"bfloat16": speed(model, ids, o.tokens, o.context)}
    if o.fuse:
        speeds["bfloat16, compiled step"] = speed(model, ids, o.tokens, o.context, fuse=True)
    plain = said(model, ids, o.tokens, o.context)
    seconds = compress_from_host(model)
    torch._dynamo.reset()
    same = {}
    for name, layout, exact in (
        ("compact", "compact", True),
        ("fast, exact", "fast", True),
        ("fast", "fast", False),
    ):
        lay_out(model, layout, exact)
        speeds[name] = speed(model, ids, o.tokens, o.context)
        if exact:
            logits, tokens = said(model, ids, o.tokens, o.context)
            same[name] = torch.equal(logits, plain[0]) and tokens == plain[1]
    if o.fuse:
        speeds["fast, compiled step"] = speed(model, ids, o.tokens, o.context, fuse=True)

    print(f"{o.layers} layers, prompt {o.prompt}, {o.tokens} tokens, cache {o.context}")
    print(f"compressed from pinned host memory in {seconds:.2f} s")
    print("| | tokens/s | x bf16 | prefill ms | peak GB | x bf16 |\n|---|---|---|---|---|---|")
    for name, r in speeds.items():
        other = speeds["bfloat16, compiled step" if "compiled" in name else "bfloat16"]
        print(
            f"| {name} | {r['tokens_per_second']:.1f} | {r['tokens_per_second'] / other['tokens_per_second']:.3f} "
            f"| {1e3 * r['prefill_seconds']:.1f} | {r['peak_bytes'] / 1e9:.2f} "
            f"| {r['peak_bytes'] / other['peak_bytes']:.3f} |"
        )
    print(f"logits and {o.tokens} greedy tokens as plain bfloat16's, eager attention: {same}")
    if o.out:
        o.out.write_text(json.dumps({"compress_seconds": seconds, "same": same, "speeds": speeds}, indent=1))
    return 0 if all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
