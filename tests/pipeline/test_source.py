"""Texts on the command line, here and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tersor.format.errors import UsageError
from tersor.pipeline.source import text_path


def test_a_file_is_itself() -> None:
    assert text_path("some/text.txt") == Path("some/text.txt")


def test_a_text_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asked for by data set, revision and file."""
    asked: list[Any] = []

    def download(*given: str, **options: Any) -> str:
        asked.append((given, options))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert text_path("hf://datasets/allenai/c4/en/c4-train.00000-of-01024.json.gz") == tmp_path / "cached"
    assert text_path("hf://datasets/a/b@v1.0/x.txt") == tmp_path / "cached"
    assert asked == [
        (("allenai/c4", "en/c4-train.00000-of-01024.json.gz"), {"repo_type": "dataset", "revision": None}),
        (("a/b", "x.txt"), {"repo_type": "dataset", "revision": "v1.0"}),
    ]


def test_what_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kind of address, and a Hub that cannot be reached."""
    with pytest.raises(UsageError, match=r"hf://datasets/OWNER/NAME"):
        text_path("hf://models/a/b/x.txt")

    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UsageError, match="cannot be had from the Hub: no network"):
        text_path("hf://datasets/a/b/x.txt")
