"""From a shard to a compressed tensor in memory."""

from __future__ import annotations

import numpy as np

from tersor.codec.packed import Packed
from tersor.format.layout import BOOK, OFFSETS, TILES
from tersor.format.manifest import TensorEntry
from tersor.format.validate import Compressed


def read_packed(model: Compressed, name: str, entry: TensorEntry) -> Packed:
    """The huffman tensor `name`, its arrays read from the shards that hold them."""
    book, offsets, tiles = (
        model.shard_of[part].read(part) for part in (name + BOOK, name + OFFSETS, name + TILES)
    )
    return Packed(entry.dtype, entry.shape, book, offsets.view(np.dtype("<u4")), tiles)
