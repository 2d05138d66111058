"""inspect: its numbers against the bytes of the file and against Shannon by hand."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from crafting import Tensor, gaussian, read_tensors, write_model
from tersor.format.errors import UsageError
from tersor.pipeline.compress import compress
from tersor.pipeline.inspect import inspect_model, inspect_tensor, outside_window

CONTENT = {
    "layer.w": gaussian((80, 300)),
    "layer.h": gaussian((64, 128), "F16"),
    "layer.b": Tensor("F32", (3,), bytes(12)),
    "none": Tensor("BF16", (0,), b""),
}


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect")
    return compress(write_model(path / "m", [CONTENT]), path / "c").path


def test_the_model(compressed: Path) -> None:
    summary = inspect_model(compressed)
    stored = read_tensors(compressed / "model.safetensors")
    assert [t.name for t in summary.tensors] == list(CONTENT)
    for t in summary.tensors:
        own = [
            p
            for n, p in stored.items()
            if n in (t.name, *(t.name + s for s in ("_book", "_offsets", "_tiles")))
        ]
        assert t.stored_bytes == sum(len(p.data) for p in own)
        assert (t.dtype, t.shape, t.original_bytes) == (
            CONTENT[t.name].dtype,
            CONTENT[t.name].shape,
            len(CONTENT[t.name].data),
        )
    assert summary.stored_bytes == sum(len(p.data) for p in stored.values())
    assert summary.original_bytes == sum(len(t.data) for t in CONTENT.values())
    assert summary.tensors[-1].bits_per_weight == 0.0


def test_a_coded_tensor(compressed: Path) -> None:
    report = inspect_tensor(compressed, "layer.w")
    v = np.frombuffer(CONTENT["layer.w"].data, np.uint16)
    counts = Counter((v >> 7 & 0xFF).tolist())
    assert report.counts == counts
    entropy = -sum(n / v.size * math.log2(n / v.size) for n in counts.values())
    assert report.symbol_entropy_bits == pytest.approx(entropy)
    assert report.bound_bits == pytest.approx(entropy + 8)
    mean = sum(counts[s] * n for s, n in report.code_lengths.items()) / v.size
    assert report.code_bits == pytest.approx(mean)
    assert report.code_bits >= report.symbol_entropy_bits
    total = report.code_bits + report.raw_bits + report.index_bits
    assert total == pytest.approx(report.summary.bits_per_weight)
    assert report.tiles == 5 * 2
    assert report.sha256 == hashlib.sha256(CONTENT["layer.w"].data).hexdigest()
    best = max(sum(counts[s] for s in range(base, base + 8)) for base in range(256))
    assert report.outside_window == pytest.approx(1 - best / v.size)


def test_a_raw_tensor(compressed: Path) -> None:
    report = inspect_tensor(compressed, "layer.b")
    assert (report.summary.codec, report.tiles, report.counts, report.raw_bits) == ("raw", 0, {}, 32.0)


def test_a_tensor_that_is_not_there(compressed: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean layer\.b, layer\.h, layer\.w\?"):
        inspect_tensor(compressed, "layer")
    with pytest.raises(UsageError, match="lists them"):
        inspect_tensor(compressed, "xyz")


def test_the_window_slides_over_all_symbols() -> None:
    counts = np.zeros(256, np.int64)
    counts[[0, 7]] = 3
    counts[[248, 255]] = 4
    assert outside_window(counts) == pytest.approx(6 / 14)
    counts[8] = 100
    assert outside_window(counts) == pytest.approx(11 / 114)
