"""MODEL on the command line: a directory, a .safetensors file, or a Hub id."""

from __future__ import annotations

import re
from pathlib import Path

from tersor.format.errors import UsageError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# What a Transformers model needs; weights in other formats stay on the Hub.
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.md", "*.tiktoken", "LICENSE*"]


def looks_like_hub_id(model: str) -> bool:
    """Whether `model` can only be meant as a Hub id: "owner/name", and no such path here."""
    return not Path(model).exists() and _HUB_ID.fullmatch(model) is not None


def local_path(model: str, revision: str | None = None) -> Path:
    """The path of `model`, downloaded to the Hub's cache first if it is a Hub id."""
    if Path(model).exists():
        return Path(model)
    if not looks_like_hub_id(model):
        raise UsageError(
            f"{model}: there is no such file or directory, and it is no Hub id (owner/name) either"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"{model}: is no path here, and cannot be had from the Hub: {_first_line(error)}. Check the name, the "
            f"network, and `hf auth login` for a gated model"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
