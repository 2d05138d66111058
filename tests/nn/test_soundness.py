"""Stored arrays that no kernel may read are refused when a model is loaded, with the tensor's name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.codec import Packed, encode
from tersor.format.errors import BadBook, BadOffsets, BadTile, FormatError
from tersor.nn.soundness import check_huffman

SHAPES = [(17, 300), (64, 256), (1, 5000), (40, 33, 3), (300, 513)]


def arrays(packed: Packed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The stored arrays as tensors of their own."""
    return tuple(torch.from_numpy(a.copy()) for a in (packed.tiles, packed.offsets, packed.book))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "size"), [("BF16", 2), ("F16", 2), ("F32", 4), ("F8_E4M3", 1)])
def test_what_an_encoder_writes_passes(shape: tuple[int, ...], dtype: str, size: int) -> None:
    """For every dtype, with tiles cut at both edges."""
    data = np.random.default_rng(1).integers(0, 256, int(np.prod(shape)) * size, dtype=np.uint8)
    check_huffman(*arrays(encode(data, dtype, shape)), dtype, shape, "t")


def test_what_does_not() -> None:
    """Each rule by its error, which names the tensor."""
    data = np.random.default_rng(2).integers(0, 256, 17 * 300 * 2, dtype=np.uint8)
    packed = encode(data, "BF16", (17, 300))

    def check(tiles: torch.Tensor, offsets: torch.Tensor, book: torch.Tensor) -> None:
        check_huffman(tiles, offsets, book, "BF16", (17, 300), "model: tensor 'w'")

    tiles, offsets, book = arrays(packed)
    book[int(book.argmax())] = 1
    with pytest.raises(BadBook, match="tensor 'w'"):
        check(tiles, offsets, book)
    for value in (0, 2**32 - 1):
        tiles, offsets, book = arrays(packed)
        offsets.view(torch.int32)[1] = value - 2**32 if value >= 2**31 else value
        with pytest.raises(BadOffsets, match="tensor 'w'"):
            check(tiles, offsets, book)
    tiles, offsets, book = arrays(packed)
    with pytest.raises(BadOffsets, match="tensor 'w'"):
        check(tiles[:-16], offsets, book)
    tiles, offsets, book = arrays(packed)
    tiles[16 * 256] ^= 64  # the first stream length of tile 0, behind its raw bytes
    with pytest.raises(BadTile, match=r"tensor 'w'.*tile 0"):
        check(tiles, offsets, book)


def test_agrees_with_the_decoder() -> None:
    """Whatever byte of index or lengths is damaged, this refuses what the CPU's decoder refuses."""
    from tersor.codec import decode

    data = np.random.default_rng(3).integers(0, 256, 20 * 280 * 2, dtype=np.uint8)
    packed = encode(data, "BF16", (20, 280))
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(300):
        tiles, offsets, book = packed.tiles.copy(), packed.offsets.copy(), packed.book.copy()
        target = (tiles, offsets.view(np.uint8), book)[rng.integers(3)]
        target[rng.integers(target.size)] ^= np.uint8(1 << rng.integers(8))
        damaged = Packed("BF16", (20, 280), book, offsets, tiles)
        try:
            decode(damaged)
            sound = True
        except FormatError:
            sound = False
        try:
            check_huffman(*arrays(damaged), "BF16", (20, 280), "t")
            assert sound
        except FormatError:
            assert not sound
            refused += 1
    assert refused > 50
