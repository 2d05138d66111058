"""Where a model runs: `--device`."""

from __future__ import annotations

import re

from tersor.format.errors import MissingDependency, UsageError


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
