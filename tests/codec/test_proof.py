"""Proofs: no single flipped bit of book, offsets or tiles escapes, padding included."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from crafting import HUFFMAN_DTYPES, gaussian_bytes
from tersor.codec import encode
from tersor.codec.proof import equals, proven_sha256
from tersor.format.errors import BadBook, BadOffsets, NotCanonical, TersorError

SHAPE = (5, 65)


def flips(array: np.ndarray) -> list[np.ndarray]:
    """The array with each of its bits flipped in turn."""
    copies = []
    for bit in range(8 * array.nbytes):
        copy = array.copy()
        copy.view(np.uint8)[bit // 8] ^= 1 << bit % 8
        copies.append(copy)
    return copies


@pytest.mark.parametrize("dtype", ["BF16", "F8_E5M2"])
@pytest.mark.parametrize("part", ["book", "offsets", "tiles"])
def test_every_flipped_bit_is_found(dtype: str, part: str) -> None:
    packed = encode(gaussian_bytes(SHAPE, dtype), dtype, SHAPE)
    truth = proven_sha256(packed)
    escaped = []
    for bit, damaged in enumerate(flips(getattr(packed, part))):
        try:
            if proven_sha256(dataclasses.replace(packed, **{part: damaged})) == truth:
                escaped.append(bit)
        except TersorError:
            pass
    assert not escaped


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
def test_an_intact_tensor_is_proven(dtype: str) -> None:
    data = gaussian_bytes((40, 300), dtype)
    packed = encode(data, dtype, (40, 300))
    seen = []
    assert proven_sha256(packed, also=seen.append) == hashlib.sha256(data).hexdigest()
    assert b"".join(piece.tobytes() for piece in seen) == data.tobytes()
    assert equals(packed, data)


def test_equals_sees_a_bit_and_a_missing_end() -> None:
    data = gaussian_bytes((40, 300))
    packed = encode(data, "BF16", (40, 300))
    for byte in (0, data.size // 2, data.size - 1):
        other = data.copy()
        other[byte] ^= 1
        assert not equals(packed, other)
    assert not equals(packed, data[:-2])
    assert not equals(packed, np.append(data, data[:2]))


def test_equals_tells_minus_zero_from_zero() -> None:
    zeros = np.zeros(64 * 64, np.uint16)
    minus = zeros.copy()
    minus[77] = 0x8000
    packed = encode(zeros.view(np.uint8), "BF16", (64, 64))
    assert equals(packed, zeros.view(np.uint8))
    assert not equals(packed, minus.view(np.uint8))


def test_equals_holds_on_nan() -> None:
    nan = np.full(64 * 64, 0x7FC1, np.uint16).view(np.uint8)
    assert equals(encode(nan, "BF16", (64, 64)), nan)


def test_another_complete_book_changes_the_hash() -> None:
    """Swapping two lengths keeps the Kraft sum: other symbols come out, in a perfectly canonical form."""
    packed = encode(gaussian_bytes((40, 300)), "BF16", (40, 300))
    used = np.flatnonzero(packed.book)
    a, b = used[np.argmin(packed.book[used])], used[np.argmax(packed.book[used])]
    book = packed.book.copy()
    book[a], book[b] = book[b], book[a]
    assert proven_sha256(dataclasses.replace(packed, book=book)) != proven_sha256(packed)


def test_damage_is_named() -> None:
    packed = encode(gaussian_bytes((40, 300)), "BF16", (40, 300))
    with pytest.raises(BadBook, match="layer: "):
        proven_sha256(dataclasses.replace(packed, book=np.ones(256, np.uint8)), "layer")
    with pytest.raises(BadOffsets, match="layer: "):
        proven_sha256(dataclasses.replace(packed, offsets=packed.offsets[::-1].copy()), "layer")
    flat = packed.offsets.copy()
    flat[2] = flat[1]  # a tile of no bytes
    with pytest.raises(BadOffsets, match="layer: "):
        proven_sha256(dataclasses.replace(packed, offsets=flat), "layer")
    with pytest.raises(BadOffsets, match="layer: "):
        proven_sha256(dataclasses.replace(packed, tiles=packed.tiles[:-16]), "layer")
    tail = packed.tiles.copy()
    tail[-1] = 1
    with pytest.raises(NotCanonical, match=r"layer: .*spare"):
        proven_sha256(dataclasses.replace(packed, tiles=tail), "layer")
