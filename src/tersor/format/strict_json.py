"""JSON as headers and manifests need it: without the freedoms that let one file mean two things."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str) -> Any:
    """`text` parsed; ValueError also for a name twice, nesting without end, and strings that UTF-8 cannot hold."""
    try:
        document = json.loads(text, object_pairs_hook=_unique)
        if (
            "\\u" in text
        ):  # an escape may stand for half a character, which no file could be written with again
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"it names {name!r} twice")
        result[name] = value
    return result
