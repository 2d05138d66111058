"""Golden files fix the codecs for quantised tensors: the same bytes written, the same weights read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from make_golden_quantized import HERE, NAMES, file_of, matrices

from crafting import read_tensors, split_file
from exact import bfloat16, binary16, fraction
from tersor.codec.quantized.dequantize import dequantize
from tersor.codec.quantized.rounding import to_bytes
from tersor.pipeline.decompress import decompress
from tersor.pipeline.verify import verify

# Of the files, so that a golden file cannot be made anew unseen.
SHA256 = {
    "spqr": "728611e8f26504e8b1833373b974fffd77657898d2476b1776cf9e28feff19ba",
    "integers": "c5a0fad56062661eb8201595e396b7b7f20c7894156dad1717594438ddd173a9",
}


@pytest.mark.parametrize("codec", NAMES)
def test_the_writer_writes_these_bytes(codec: str) -> None:
    golden = (HERE / f"{codec}.safetensors").read_bytes()
    assert file_of(codec) == golden
    assert hashlib.sha256(golden).hexdigest() == SHA256[codec]


@pytest.mark.parametrize("codec", NAMES)
def test_they_decode_to_what_they_were_made_from(codec: str, tmp_path: Path) -> None:
    golden = HERE / f"{codec}.safetensors"
    assert verify(golden).ok
    back = read_tensors(decompress(golden, tmp_path / "back.safetensors").path)
    for name, q in matrices(codec).items():
        assert back[name].data == to_bytes(dequantize(q), q.dtype).tobytes()


def test_spqr_by_hand() -> None:
    """FORMAT.md section 6 applied to the arrays of the file, one weight at a time, without our code."""
    content = (HERE / "spqr.safetensors").read_bytes()
    entry = json.loads(split_file(content)[0]["__metadata__"]["tersor"])["tensors"]["all"]
    p, (rows, columns) = entry["parameters"], entry["shape"]
    parts = {n.removeprefix("all"): t.data for n, t in read_tensors(HERE / "spqr.safetensors").items()}
    bits = {
        name: np.unpackbits(np.frombuffer(parts[name], np.uint8).reshape(rows, -1), axis=1, bitorder="little")
        for name in ("_codes", "_levels")
    }
    stats = np.frombuffer(parts["_stats"], "<f2").reshape(-1, -(-columns // p["group"]), 4).astype(np.float32)
    order, counts, places = (np.frombuffer(parts[n], "<u2") for n in ("_order", "_counts", "_places"))
    deltas = np.frombuffer(parts["_deltas"], "<f2").astype(np.float32)
    outliers: dict[tuple[int, int], np.float32] = {}
    tile_columns = -(-columns // 256)
    for i, tile in enumerate(np.repeat(np.arange(len(counts)), counts)):
        row, column = divmod(int(places[i]), 256)
        outliers[tile // tile_columns * 16 + row, tile % tile_columns * 256 + column] = deltas[i]

    def number(name: str, r: int, at: int, width: int) -> int:
        return sum(int(bit) << k for k, bit in enumerate(bits[name][r, at * width :][:width]))

    weight = np.zeros((rows, columns), np.float32)
    for r in range(rows):
        for j in range(columns):
            i, k = j // p["group"], r // p["rows"]
            scale_step, scale_min, zero_step, zero_min = map(fraction, stats[k, i])
            scale = binary16(scale_min + scale_step * number("_levels", r, 2 * i, p["stat_bits"]))
            zero = binary16(zero_min + zero_step * number("_levels", r, 2 * i + 1, p["stat_bits"]))
            factor = bfloat16(scale)
            base = bfloat16(factor * number("_codes", r, j, p["bits"]) + bfloat16(-factor * zero))
            w = np.float32(float(base))
            if (r, j) in outliers:
                w = w + outliers[r, j]
            weight[r, order[j]] = w * np.float32(2.0 ** p["unit"])
    assert len(outliers) == p["outliers"] > 80
    assert hashlib.sha256(to_bytes(weight_in_bf16(weight), "BF16").tobytes()).hexdigest() == entry["sha256"]


def weight_in_bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
