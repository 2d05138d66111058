"""`tersor bench`: how fast this machine is at it, in numbers that compare.

Without a model: the codec on the CPU and, where there is a GPU, decoding, encoding and fused products
against cuBLAS (`tersor.kernels.bench`). With models: tokens per second of each in the same loop.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.codec import BACKEND, decode, encode
from tersor.codec.threads import threads
from tersor.pipeline.generate import Generator

if TYPE_CHECKING:
    from tersor.kernels.bench import Codec, Product

ROWS, COLS = 8192, 4096  # 67 MB of bfloat16
_REPEATS = 5


@dataclass(frozen=True)
class CodecSpeed:
    """The codec on the CPU: a Gaussian bf16 matrix, megabytes of bfloat16 per second, medians."""

    backend: str
    threads: int
    encode_mb_per_second: float
    decode_mb_per_second: float
    bits_per_weight: float


@dataclass(frozen=True)
class ModelSpeed:
    """One model in the decode loop at batch 1."""

    model: Path
    device: str
    tokens: int
    tokens_per_second: float
    prefill_seconds: float
    weight_bytes: int
    peak_gpu_bytes: int | None


@dataclass(frozen=True)
class MachineSpeed:
    """All that was measured without a model; the last two are empty where there is no GPU."""

    codec: CodecSpeed
    gpu_codecs: tuple[Codec, ...]
    gpu_products: tuple[Product, ...]


def bench_machine(tokens: Sequence[int] = (1, 8, 16, 32)) -> MachineSpeed:
    """Measure the codec on the CPU, and on a GPU codecs and products for these numbers of tokens."""
    if not _has_gpu():
        return MachineSpeed(_codec_speed(), (), ())
    from tersor.kernels.bench import SHAPES, codecs, products

    return MachineSpeed(_codec_speed(), tuple(codecs()), tuple(products(SHAPES, tokens)))


def bench_model(
    model: str | Path,
    *,
    prompt: str = "The river rises in the mountains of",
    new_tokens: int = 128,
    device: str = "auto",
    layout: str = "auto",
    exact: bool = False,
    fuse: bool = False,
) -> ModelSpeed:
    """Tokens per second of `model`, plain or compressed: greedy, batch 1, static cache, on a GPU a CUDA graph.

    `layout` and `exact` are as in TersorConfig; `fuse` lets torch compile the step first.
    """
    generator = Generator(model, device, layout=layout, exact=exact)
    import torch

    from tersor.pipeline.decode_loop import DecodeLoop

    gc.collect()  # the model measured before this one
    ids = generator.prompt_ids(prompt)
    on_gpu = generator.device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loop = DecodeLoop(generator.model, ids.shape[1] + new_tokens, fuse=fuse)
    loop.run(ids, min(8, new_tokens))  # compiles, captures, fills caches
    runs = [loop.run(ids, new_tokens) for _ in range(3 if on_gpu else 1)]
    return ModelSpeed(
        generator.path,
        generator.device,
        new_tokens,
        statistics.median(run.tokens_per_second for run in runs),
        statistics.median(run.prefill_seconds for run in runs),
        generator.weight_bytes,
        torch.cuda.max_memory_allocated() if on_gpu else None,
    )


def _codec_speed() -> CodecSpeed:
    rng = np.random.default_rng()
    bits = (rng.standard_normal((ROWS, COLS), np.float32) * np.float32(0.02)).view(np.uint32)
    data = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8).reshape(-1)
    packed = encode(data, "BF16", (ROWS, COLS))
    decode(packed)
    into, back = [], []
    for _ in range(_REPEATS):
        into.append(_seconds(lambda: encode(data, "BF16", (ROWS, COLS))))
        back.append(_seconds(lambda: decode(packed)))
    megabytes = data.size / 1e6
    return CodecSpeed(
        BACKEND,
        threads(),
        megabytes / statistics.median(into),
        megabytes / statistics.median(back),
        packed.bits_per_weight,
    )


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
