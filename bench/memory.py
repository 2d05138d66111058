"""Peak memory of `tersor compress` on a large sharded model of random weights.

    python bench/memory.py [--gigabytes 4.2] [--work DIR]

Writes a sharded bf16 checkpoint of Gaussian weights with the shapes of an 8B Llama, compresses
it in a process of its own, and prints that process's peak resident memory against two of the
model's largest tensors plus 1 GiB. Exit status 1 if it is more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tersor.format.shard import Extent, dump_header

HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 4096, 14336, 1024, 128256
SHARD_BYTES = 1_500_000_000


def shapes(total: int) -> list[tuple[str, tuple[int, int]]]:
    """Names and shapes of an embedding and as many 8B blocks as reach `total` bytes."""
    found: list[tuple[str, tuple[int, int]]] = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN))]
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    layer = 0
    while sum(2 * a * b for _, (a, b) in found) < total:
        found += [(f"model.layers.{layer}.{name}.weight", shape) for name, shape in block.items()]
        layer += 1
    return found


def write_model(path: Path, total: int) -> int:
    """Write the checkpoint; returns the bytes of its largest tensor."""
    path.mkdir()
    rng = np.random.default_rng(7)
    noise = (rng.standard_normal(1 << 24, np.float32) * np.float32(0.02)).view(np.uint32)
    noise16 = ((noise + 0x7FFF + (noise >> 16 & 1)) >> 16).astype(np.uint16)
    shards: list[list[tuple[str, tuple[int, int]]]] = [[]]
    for name, shape in shapes(total):
        if sum(2 * a * b for _, (a, b) in shards[-1]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, shape))
    weight_map = {}
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        at, extents = 0, []
        for name, (rows, cols) in tensors:
            extents.append((name, Extent("BF16", (rows, cols), at, at + 2 * rows * cols)))
            at += 2 * rows * cols
            weight_map[name] = file
        with (path / file).open("wb") as out:
            out.write(dump_header({"format": "pt"}, extents))
            for _, (rows, cols) in tensors:
                shift = int(rng.integers(1 << 24))
                repeated = np.resize(np.roll(noise16, shift), rows * cols)
                out.write(repeated.data)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return max(2 * a * b for _, (a, b) in shapes(total))


def main() -> int:
    """Measure and print; 0 if within the bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=4.2, help="size of the model")
    parser.add_argument("--work", type=Path, help="directory for the files (twice the model's size)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        model = Path(scratch) / "model"
        largest = write_model(model, int(options.gigabytes * 1e9))
        total = sum(f.stat().st_size for f in model.glob("*.safetensors"))
        started = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "tersor",
            "compress",
            str(model),
            str(Path(scratch) / "out"),
            "--json",
        ]
        job = subprocess.Popen(command, stdout=subprocess.PIPE)
        output, _ = job.communicate()
        # the child is the only one waited for, so its peak is the largest of all children
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        seconds = time.monotonic() - started
        result = json.loads(output)
    bound = 2 * largest + (1 << 30)
    print(
        f"model {total / 1e9:.2f} GB, largest tensor {largest / 1e9:.3f} GB, ratio {100 * result['ratio']:.2f} %"
    )
    print(f"{seconds:.1f} s, {total / seconds / 1e6:.0f} MB/s on {len(os.sched_getaffinity(0))} cores")
    print(
        f"peak resident {peak / 2**30:.3f} GiB, bound {bound / 2**30:.3f} GiB (two largest tensors + 1 GiB)"
    )
    return 0 if job.returncode == 0 and peak <= bound else 1


if __name__ == "__main__":
    sys.exit(main())
