"""`tersor doctor`: what this machine has, and whether tersor works on it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np

from tersor._version import __version__
from tersor.format.dtypes import RAW_BYTES, itemsize
from tersor.format.errors import TersorError

_PACKAGES = ("numpy", "numba", "safetensors", "huggingface_hub", "torch", "transformers", "accelerate")


@dataclass(frozen=True)
class Check:
    """One thing looked at: fine, missing but optional, or broken (then `advice` says what to do)."""

    name: str
    status: str  # "ok", "absent" or "broken"
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks in order."""

    tersor: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken; absent things are fine."""
        return all(check.status != "broken" for check in self.checks)


def diagnose() -> Diagnosis:
    """Look at Python, libraries, the codec (a round trip of every dtype, timed), Transformers and the GPU."""
    checks = [_python(), *(_package(name) for name in _PACKAGES), _codec(), _autoload(), _gpu(), _kernels()]
    return Diagnosis(__version__, tuple(checks))


def _python() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(
        "python",
        "ok",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores",
    )


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        advice = {
            "numba": "pip install 'tersor[cpu]': the codec is twenty to eighty times faster with it",
            "torch": "pip install 'tersor[hf]' to load and run models",
            "transformers": "pip install 'tersor[hf]' to load and run models",
        }.get(name, "")
        return Check(name, "absent", "not installed", advice)


def _codec() -> Check:
    from tersor.codec import BACKEND, decode, encode
    from tersor.codec.reference import encode as plain_encode

    if BACKEND == "numpy" and find_spec("numba") is not None:
        return Check("codec", "broken", "numba is installed and cannot be used", "pip install -U numba numpy")

    rng = np.random.default_rng(int.from_bytes(os.urandom(8)))
    for dtype in RAW_BYTES:
        data = rng.integers(0, 256, 33 * 300 * itemsize(dtype), dtype=np.uint8)
        packed, plain = encode(data, dtype, (33, 300)), plain_encode(data, dtype, (33, 300))
        if not np.array_equal(decode(packed), data) or not np.array_equal(packed.tiles, plain.tiles):
            advice = "do not use this installation; please report it with the output of tersor doctor --json"
            return Check("codec", "broken", f"{BACKEND}: the round trip of {dtype} failed", advice)
    bits = rng.standard_normal((2048, 4096)).astype(np.float32).view(np.uint32) >> 16
    weights = bits.astype(np.uint16).view(np.uint8).reshape(-1)
    started = time.perf_counter()
    packed = encode(weights, "BF16", (2048, 4096))
    middle = time.perf_counter()
    decode(packed)
    ended = time.perf_counter()
    into, back = (weights.size / s / 1e6 for s in (middle - started, ended - middle))
    return Check(
        "codec",
        "ok",
        f"{BACKEND}: round trips of {', '.join(RAW_BYTES)} exact; bf16 {into:.0f} MB/s in, {back:.0f} out",
    )


def _autoload() -> Check:
    if find_spec("torch") is None or find_spec("transformers") is None:
        return Check("from_pretrained", "absent", "torch or transformers is not installed")
    if os.environ.get("TERSOR_DISABLE_AUTOLOAD", "") not in ("", "0"):
        return Check("from_pretrained", "absent", "switched off by TERSOR_DISABLE_AUTOLOAD")
    import torch  # noqa: F401  (its import runs our entry point)
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if "tersor" not in AUTO_QUANTIZER_MAPPING:
        advice = "install tersor with pip (its entry point is not seen), or `import tersor.integrations.transformers`"
        return Check("from_pretrained", "broken", "Transformers does not know compressed models", advice)
    return Check("from_pretrained", "ok", "Transformers loads compressed models with no import of ours")


def _gpu() -> Check:
    if find_spec("torch") is None:
        return Check("gpu", "absent", "torch is not installed")
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(
            "gpu", "broken", f"torch is installed and cannot be imported: {error}", "install torch again"
        )
    if not torch.cuda.is_available():
        return Check("gpu", "absent", "torch sees no CUDA device; models run on the CPU")
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties(0).total_memory
    return Check("gpu", "ok", f"{name}, sm_{major}{minor}, {memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")


def _kernels() -> Check:
    """Compile and run the kernels once: codes against the CPU's bit for bit, a product against torch's."""
    if _gpu().status != "ok":
        return Check("kernels", "absent", "no GPU to run them on")
    import torch

    from tersor.kernels import ops  # noqa: F401  (defines the operators of the codecs,
    from tersor.kernels.window import ops as window_ops  # noqa: F401  and those of the products)

    weight = (torch.randn(256, 1024) * 0.02).bfloat16()
    x = torch.randn(4, 1024, device="cuda", dtype=torch.bfloat16)
    started = time.perf_counter()
    try:
        on_gpu = weight.cuda()
        stored = torch.ops.tersor.huffman_encode(on_gpu)
        on_cpu = torch.ops.tersor.huffman_encode(weight)
        same = all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(stored, on_cpu, strict=True))
        back = torch.ops.tersor.huffman_decode(*stored, "BF16", list(weight.shape))
        packed = torch.ops.tersor.window_pack(on_gpu)
        product = torch.ops.tersor.window_linear(x, *packed, None, *weight.shape, False).double()
    except TersorError as error:
        return Check("kernels", "broken", str(error), "models still run on the CPU: --device cpu")
    exact = x.double() @ on_gpu.double().T
    error_share = float((product - exact).norm() / exact.norm())
    same = same and torch.equal(back.view(torch.int16), on_gpu.view(torch.int16)) and error_share < 0.01
    took = f"compiled and run in {time.perf_counter() - started:.1f} s"
    if not same:
        return Check(
            "kernels",
            "broken",
            "results differ from the CPU's",
            "use --device cpu, and please report this with the output of tersor doctor --json",
        )
    return Check("kernels", "ok", f"encode, decode and fused product right; {took}")
