"""Make the golden files of the codecs for quantised tensors; refuses to touch those that exist.

    python tests/golden/make_golden_quantized.py

As in make_golden.py all numbers come from integer arithmetic. Each file holds two tensors: one that uses
everything its codec has, edges cut everywhere, and one that uses as little as it can.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tersor.codec.quantized.integers import Integers  # noqa: E402
from tersor.codec.quantized.matrix import Quantized  # noqa: E402
from tersor.codec.quantized.parts import Matrix  # noqa: E402
from tersor.format.dtypes import itemsize  # noqa: E402
from tersor.format.manifest import dump_manifest  # noqa: E402
from tersor.format.shard import Extent, dump_header  # noqa: E402
from tersor.pipeline.stored_form import quantized_form  # noqa: E402

NAMES = ("spqr", "integers")


def noise() -> Iterator[int]:
    """24 bits at a time from a linear congruential generator."""
    state = 20240229
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 40


def numbers(source: Iterator[int], shape: tuple[int, ...], below: int) -> np.ndarray:
    """Integers from 0 to `below` - 1."""
    count = int(np.prod(shape))
    return np.array([next(source) % below for _ in range(count)], np.int64).reshape(shape)


def matrices(codec: str) -> dict[str, Matrix]:
    """The tensors of one file."""
    source = noise()
    if codec == "integers":
        small = numbers(source, (17, 300), 2**24)
        codes = sum((small >> i & 1) for i in range(24)) - 12  # about normally distributed
        codes[0, :2] = 127, -127
        steps = (numbers(source, (300,), 128) + 128).astype(np.float32) * np.float32(2.0**-14)
        plain = Integers("F32", np.ones((1, 3), np.int8), np.ones(3, np.float32))
        return {"all": Integers("BF16", codes.astype(np.int8), steps), "least": plain}
    index = np.unique(numbers(source, (90,), 17 * 300))
    full = Quantized(
        3,
        16,
        8,
        3,
        "BF16",
        2.0**-6,
        numbers(source, (17, 300), 8).astype(np.uint8),
        numbers(source, (17, 19), 8).astype(np.uint8),
        numbers(source, (17, 19), 8).astype(np.uint8),
        (numbers(source, (3, 19, 4), 2048) / 4096).astype(np.float16),
        index,
        ((numbers(source, index.shape, 2048) - 1024) / 512).astype(np.float16),
        np.argsort(numbers(source, (300,), 2**24), kind="stable").astype(np.int32),
    )
    none = np.zeros((2, 1), np.uint8)
    stats = np.zeros((2, 1, 4), np.float16)
    stats[..., 1], stats[..., 3] = 0.25, 8
    codes = numbers(source, (2, 9), 16).astype(np.uint8)
    least = Quantized(
        4,
        9,
        1,
        0,
        "F32",
        1.0,
        codes,
        none,
        none,
        stats,
        np.empty(0, np.int64),
        np.empty(0, np.float16),
        None,
    )
    return {"all": full, "least": least}


def file_of(codec: str) -> bytes:
    """The whole file."""
    entries, extents, data = {}, {}, b""
    for name, q in matrices(codec).items():
        size = q.codes.size * itemsize(q.dtype)
        entries[name], parts = quantized_form(name, Extent(q.dtype, q.shape, 0, size), q)
        for part in parts:
            stored = b"".join(buffer.tobytes() for buffer in part.data)
            extents[part.name] = Extent(part.dtype, part.shape, len(data), len(data) + len(stored))
            data += stored
    return dump_header({"tersor": dump_manifest(entries)}, extents.items()) + data


def main() -> None:
    """Write one file per codec."""
    for codec in NAMES:
        path = HERE / f"{codec}.safetensors"
        if path.exists():
            raise SystemExit("golden files never change: a new format version makes new ones beside them")
        path.write_bytes(file_of(codec))
        print(json.dumps({codec: path.stat().st_size}))


if __name__ == "__main__":
    main()
