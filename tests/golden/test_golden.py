"""Golden files fix the format: today's encoder writes these very bytes, and they decode to what they were made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from make_golden import BYTES, HERE, SHAPE, original, original_model, weights

from crafting import read_tensors, tree
from tersor.codec import Packed, reference
from tersor.pipeline.compress import compress
from tersor.pipeline.decompress import decompress
from tersor.pipeline.verify import verify

# Of the files, so that a golden file cannot be made anew unseen.
SHA256 = {
    "BF16": "86ee7b153e0690c5693f065ec5bf8506945d542cfbe5c1639c92c2e475b6b695",
    "F16": "f461e8e9749748316dcc300973ac7b8c42a8c1e138aa2a8f4f1842a50847f0da",
    "F32": "0e74477efa861a2f5108b6732d7e772f73abbaa1b5cd1cb69033c496ea3bd210",
    "F8_E4M3": "30130eb96f3c9a9ca0c45bf0d6c05566c59d3d2f17910f023d827ca2b6125fc8",
    "F8_E5M2": "9ab2bccec4898db02e27e157d75c70adaf4e43e2e4ffcfda80611d7ec21bcad3",
}


@pytest.mark.parametrize("dtype", BYTES)
def test_the_encoder_writes_these_bytes(dtype: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(original(dtype))
    golden = (HERE / f"{dtype}.safetensors").read_bytes()
    made = compress(plain, tmp_path / "made.safetensors")
    assert made.path.read_bytes() == golden
    assert made.compressed_tensors == 1
    assert hashlib.sha256(golden).hexdigest() == SHA256[dtype]


@pytest.mark.parametrize("dtype", BYTES)
def test_they_decode_to_the_original(dtype: str, tmp_path: Path) -> None:
    golden = HERE / f"{dtype}.safetensors"
    assert verify(golden).ok
    back = decompress(golden, tmp_path / "back.safetensors").path
    assert back.read_bytes() == original(dtype)


@pytest.mark.parametrize("dtype", BYTES)
def test_the_reference_reads_the_stored_arrays(dtype: str) -> None:
    """Without any of the file handling: arrays cut out by hand, decoded by the NumPy reference."""
    parts = read_tensors(HERE / f"{dtype}.safetensors")
    book, tiles = (np.frombuffer(parts["weight_" + p].data, np.uint8) for p in ("book", "tiles"))
    offsets = np.frombuffer(parts["weight_offsets"].data, "<u4")
    decoded = reference.decode(Packed(dtype, SHAPE, book, offsets, tiles))
    assert decoded.tobytes() == weights(dtype).data


def test_the_directory(tmp_path: Path) -> None:
    """Shards and index byte for byte; config.json names the version that wrote it, which may differ."""
    plain = original_model(tmp_path / "plain")
    compress(plain, tmp_path / "made")
    made, golden = tree(tmp_path / "made"), tree(HERE / "model")
    assert made.keys() == golden.keys()
    assert {f for f in made if made[f] != golden[f]} <= {"config.json"}
    assert verify(HERE / "model", against=plain).ok
    back = decompress(HERE / "model", tmp_path / "back").path
    for file in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert (back / file).read_bytes() == (plain / file).read_bytes()


def test_an_element_written_by_hand(tmp_path: Path) -> None:
    """FORMAT.md section 3 for a tensor small enough to code on paper, without our encoder.

    Four float8 symbols A A B A: A has code 0, B code 1, both of 1 bit; the stream is the bits
    0 0 1 0 from the lowest up, one byte 0x04. No raw bytes; one stream length; the stream.
    """
    book = np.zeros(256, np.uint8)
    book[[0x41, 0x42]] = 1
    tiles = np.zeros(16 + 16 + 16, np.uint8)
    tiles[0], tiles[16] = 1, 0b0100
    packed = reference.encode(np.frombuffer(b"AABA", np.uint8), "F8_E4M3", (4,))
    assert packed.book.tobytes() == book.tobytes()
    assert packed.offsets.tolist() == [0, 2]
    assert packed.tiles.tobytes() == tiles.tobytes()
    assert reference.decode(Packed("F8_E4M3", (4,), book, packed.offsets, tiles)).tobytes() == b"AABA"
