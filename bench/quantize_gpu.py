"""Quantising a model of Llama-3.1-8B's shape on one GPU: the whole job, from a checkpoint to a checkpoint.

    python bench/quantize_gpu.py [--layers 8] [--bits 4] [--method spqr] [--folder DIR] [--out FILE.json]

Writes a checkpoint of so many of its 32 blocks (random weights, sigma 0.02; two shards or more) with the
tokenizer of the model that ships, and a text of random words; then runs what `tersor compress MODEL OUT
--bits 4 --calib TEXT --device cuda` runs, 128 sequences of 2048 tokens, and reads its clock as it goes.
Reported are the seconds of every block (calibration, quantisation and keeping the result), of what comes
before the first and of the writing; and, scaled up, of 32 blocks: the median block and the writing of the
blocks' tensors times 32, everything else once. Peak memory of the GPU and of the process are of this run.

Before that a small layer is quantised on the CPU and on the GPU, which must agree in every stored number.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig

import tersor
from tersor.pipeline.near_lossless.goal import Calibration, one_method
from tersor.pipeline.near_lossless.job import compress_near_lossless
from tersor.quantize import spqr
from tersor.quantize.settings import preset

HIDDEN, MLP, HEADS, KV_HEADS, VOCABULARY, BLOCKS = 4096, 14336, 32, 8, 128256, 32
KV = HIDDEN // HEADS * KV_HEADS
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}


def same_as_cpu() -> bool:
    """Whether a layer with outliers and correlated inputs gets the same numbers on both devices, in float64."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(512, 512, generator=generator, dtype=torch.float64)
    x = torch.randn(2048, 512, generator=generator, dtype=torch.float64) @ mix
    weight, h = (0.02 * torch.randn(256, 512, generator=generator) ** 3).bfloat16(), x.T @ x / len(x)
    here = spqr.quantize(weight, h, preset("4-bit"), torch.float64)
    there = spqr.quantize(weight.cuda(), h.cuda(), preset("4-bit"), torch.float64)
    names = ("codes", "scale_codes", "zero_codes", "stats", "outlier_index", "outlier_value")
    return all(np.array_equal(getattr(here, name), getattr(there, name)) for name in names)


def write_model(folder: Path, layers: int) -> None:
    """The checkpoint: a shard for the embedding and head, one for every eight blocks."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}, dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(Path(tersor.__file__).parent / "demo_model").save_pretrained(folder)

    def random_matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16).mul_(0.02).cpu()

    def ones() -> torch.Tensor:
        return torch.ones(HIDDEN, dtype=torch.bfloat16)

    shards: list[dict[str, torch.Tensor]] = []
    for first in range(0, layers, 8):
        shards.append({})
        for i in range(first, min(first + 8, layers)):
            prefix = f"model.layers.{i}."
            shards[-1] |= {f"{prefix}{name}.weight": random_matrix(*shape) for name, shape in SHAPES.items()}
            shards[-1] |= {f"{prefix}{name}_layernorm.weight": ones() for name in ("input", "post_attention")}
    ends = {
        name: random_matrix(VOCABULARY, HIDDEN) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    shards.append({**ends, "model.norm.weight": ones()})
    where = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_text(path: Path, words: int) -> None:
    """Random words, four letters or so each: the tokenizer makes more than one token of most."""
    generator = random.Random(0)
    vocabulary = ["".join(generator.choices("aeinorstlhdmu", k=generator.randint(2, 7))) for _ in range(5000)]
    path.write_text(" ".join(generator.choices(vocabulary, k=words)))


def run(model: Path, out: Path, text: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The job, and when it did what."""
    layers: list[tuple[str, float]] = []
    written: list[tuple[str, float]] = []
    begin = time.perf_counter()
    goal = one_method(options.method, options.bits, options.group, options.rows)
    result = compress_near_lossless(
        model, out, goal, Calibration(text, options.sequences, options.length), device="cuda",
        on_step=lambda step: layers.append((step.layer.name if step.layer else "", time.perf_counter() - begin)),
        on_progress=lambda p: written.append((p.tensor, time.perf_counter() - begin)),
    )  # fmt: skip
    total = time.perf_counter() - begin
    ends = {name.split(".")[2]: at for name, at in layers if name}  # of each block: its last matrix
    marks = list(ends.values())
    blocks = [b - a for a, b in pairwise(marks)]
    moments = [layers[-1][1], *(at for _, at in written)]
    tensors = {name: b - a for (name, b), a in zip(written, moments, strict=False)}
    writing = sum(seconds for name, seconds in tensors.items() if ".layers." in name)
    block, count = statistics.median(blocks), len(marks)
    once = total - sum(blocks) - marks[0] - writing  # what neither a block nor its writing is
    return {
        "layers": count,
        "total_seconds": total,
        "first_block_done": marks[0],
        "blocks": blocks,
        "median_block": block,
        "writing_per_block": writing / count,
        "other": once,
        "scaled_to_32": marks[0] + once + (BLOCKS - 1) * block + BLOCKS * writing / count,
        "bits_per_weight": result.bits.per_weight,
        "stored_bytes": result.compressed.stored_bytes,
        "gpu_peak_bytes": torch.cuda.max_memory_allocated(),
        "host_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> int:
    """Check, measure, report; 1 if GPU and CPU differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--bits", type=float, default=4)
    parser.add_argument("--method", default="spqr")
    parser.add_argument("--group", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="where to write 5 GB and more; default the system's")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not same_as_cpu():
        print("a small layer: GPU and CPU DIFFER")
        return 1
    print("a small layer: GPU and CPU agree in every stored number", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        model, text = Path(scratch) / "model", Path(scratch) / "text.txt"
        model.mkdir()
        write_model(model, options.layers)
        write_text(text, options.sequences * options.length)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found = run(model, Path(scratch) / "out", text, options)
    found |= {"gpu": torch.cuda.get_device_name(), "options": {k: str(v) for k, v in vars(options).items()}}
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
