"""Amounts as people write them on a command line: sizes, token counts, shares."""

from __future__ import annotations

import re

from tersor.format.errors import UsageError

_SCALE = {"G": 10**9, "GB": 10**9, "GIB": 2**30, "M": 10**6, "MB": 10**6, "MIB": 2**20}


def parse_bytes(text: str, option: str) -> int:
    """24GB, 80GiB, 500MB; without a unit gigabytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(G|GB|GIB|M|MB|MIB)?", text.strip().upper())
    if not match:
        raise UsageError(f"{option} {text}: give a size such as 24GB or 80GiB")
    return int(float(match[1]) * _SCALE[match[2] or "GB"])


def parse_tokens(text: str, option: str) -> int:
    """8192, 32k."""
    match = re.fullmatch(r"(\d+)\s*(k?)", text.strip().lower())
    if not match:
        raise UsageError(f"{option} {text}: give tokens such as 8192 or 32k")
    return int(match[1]) * (1024 if match[2] else 1)


def parse_share(text: str, option: str) -> float:
    """1%, 0.5 %, 0.01: a share of the whole."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    if not match:
        raise UsageError(f"{option} {text}: give a share such as 1% or 0.01")
    return float(match[1]) / (100 if match[2] else 1)
