"""A whole model of Llama-3.1-8B's shape on one GPU: tokens per second, memory, and the same tokens.

    python bench/whole_model.py [--layers 32] [--tokens 128] [--context 2048] [--out FILE.json]

Random weights (sigma 0.02): they serve for speed and memory. One model is measured three times
in one process, by the same decode loop (static cache, one CUDA graph per token, batch 1): plain
bfloat16; compressed in the `compact` layout, exact; compressed in the `fast` layout, fused. The
exact run must give the plain run's logits and greedy tokens bit for bit. Compressing is timed
from host memory, tensor by tensor, the copy to the GPU included.
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


def measure(model: Any, ids: torch.Tensor, tokens: int, context: int) -> dict[str, Any]:
    """Tokens per second (median of three runs), peak memory, the tokens and the prompt's last logits."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loop = DecodeLoop(model, context)
    runs = sorted((loop.run(ids, tokens) for _ in range(3)), key=lambda r: r.decode_seconds)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    peak = torch.cuda.max_memory_allocated()
    return {
        "tokens_per_second": runs[1].tokens_per_second,
        "prefill_seconds": runs[1].prefill_seconds,
        "peak_bytes": peak,
        "tokens": runs[1].tokens,
        "logits": logits.cpu(),
    }


def main() -> int:
    """Measure and print; 0 if the exact run was the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = plain_model(options.layers, options.context)
    ids = torch.randint(0, 128256, (1, options.prompt), device="cuda")
    results = {"bfloat16": measure(model, ids, options.tokens, options.context)}
    seconds = compress_from_host(model)
    results["compact, exact"] = measure(model, ids, options.tokens, options.context)
    fast = lay_out(model, "fast", exact=False)
    results["fast, fused"] = measure(model, ids, options.tokens, options.context)
    lay_out(model, "fast", exact=True)
    results["fast, exact"] = measure(model, ids, options.tokens, options.context)

    plain = results["bfloat16"]
    print(
        f"{options.layers} layers, prompt {options.prompt}, {options.tokens} tokens, cache {options.context}"
    )
    print(f"compressed from pinned host memory in {seconds:.2f} s; {fast} layers in the fast layout")
    print(
        "| | tokens/s | x bf16 | prefill ms | peak GB | x bf16 | logits | tokens |\n|---|---|---|---|---|---|---|---|"
    )
    same = True
    for name, r in results.items():
        logits = torch.equal(r["logits"].view(torch.int16), plain["logits"].view(torch.int16))
        tokens = r["tokens"] == plain["tokens"]
        same &= (logits and tokens) or "exact" not in name
        print(
            f"| {name} | {r['tokens_per_second']:.1f} | {r['tokens_per_second'] / plain['tokens_per_second']:.3f} "
            f"| {1e3 * r['prefill_seconds']:.1f} | {r['peak_bytes'] / 1e9:.2f} "
            f"| {r['peak_bytes'] / plain['peak_bytes']:.3f} | {'same' if logits else 'differ'} "
            f"| {'same' if tokens else 'differ'} |"
        )
    if options.out:
        kept = {n: {k: v for k, v in r.items() if k not in ("logits", "tokens")} for n, r in results.items()}
        options.out.write_text(json.dumps({"compress_seconds": seconds, **kept}, indent=1))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
