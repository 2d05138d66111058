"""MODEL on the command line: a directory, a .safetensors file, or a Hub id. TEXT: a file, here or on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tersor.format.errors import UsageError

_HUB_TEXT = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?/(.+)")
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

    with hub_access(model):
        return Path(snapshot_download(model, revision=revision, allow_patterns=_WANTED))


def text_path(text: str | Path) -> Path:
    """The path of a text; "hf://datasets/OWNER/NAME[@REVISION]/FILE" is downloaded to the Hub's cache first."""
    if isinstance(text, Path) or not text.startswith("hf:"):
        return Path(text)
    parts = _HUB_TEXT.fullmatch(text)
    if parts is None:
        raise UsageError(f"{text}: a text on the Hub is hf://datasets/OWNER/NAME[@REVISION]/FILE")
    from huggingface_hub import hf_hub_download

    with hub_access(text):
        return Path(hf_hub_download(parts[1], parts[3], repo_type="dataset", revision=parts[2]))


@contextmanager
def hub_access(model: str) -> Iterator[None]:
    """Turn whatever goes wrong between here and the Hub into one clear error.

    Everything is caught: the Hub's client raises its own errors, those of the HTTP library it
    happens to use (which has changed between its versions), and plain OSErrors.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{model}: is no path here, and cannot be had from the Hub: {reason}. Check the name, the network, and "
            f"`hf auth login` for a gated model"
        ) from error
