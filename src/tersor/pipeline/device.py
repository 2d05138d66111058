"""Where a model runs, and in what arithmetic: `--device`, `--dtype`."""

from __future__ import annotations

import re
from typing import Literal

from tersor.format.errors import MissingDependency, UsageError

Arithmetic = Literal["auto", "float32", "bfloat16", "float16"]
"""What products are computed in. "auto" is what the checkpoint names. Compressed weights are decoded to their own
dtype whatever it is, and cast for the product; fused kernels know bfloat16 only and leave the others to torch."""


def resolve_device(device: str) -> str:
    """ "auto" as "cuda" or "cpu"; UsageError for a device that torch does not have here."""
    try:
        import torch
    except (ImportError, OSError) as error:
        raise MissingDependency(
            f"torch cannot be used ({error}), and running a model needs it: pip install 'tersor[hf,cpu]'"
        ) from error
    there = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if there else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise UsageError(f"device {device!r} is not one of auto, cpu, cuda and cuda:N")
    if device != "cpu" and not (there and int(match[1] or 0) < torch.cuda.device_count()):
        raise UsageError(
            f"device {device!r} is not there (torch sees no such GPU); `tersor doctor` tells what is"
        )
    return device
