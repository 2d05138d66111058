"""From a shard to a compressed tensor in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.codec.packed import Packed
from tersor.codec.quantized.parts import Parts
from tersor.format.layout import BOOK, OFFSETS, TILES, stored_tensors
from tersor.format.manifest import TensorEntry
from tersor.format.validate import Compressed

_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4")}


def read_parts(model: Compressed, name: str, entry: TensorEntry) -> Parts:
    """The stored arrays of a tensor that is not raw, by suffix, in the order of their declaration."""
    parts: Parts = {}
    for part in stored_tensors(name, entry):
        if not part.optional:
            shard = model.shard_of[part.name]
            data = shard.read(part.name).view(_DTYPES[part.dtype])
            parts[part.name.removeprefix(name)] = data.reshape(shard.tensors[part.name].shape)
    return parts


def read_packed(model: Compressed, name: str, entry: TensorEntry) -> Packed:
    """The huffman tensor `name`, its arrays read from the shards that hold them."""
    parts = read_parts(model, name, entry)
    return Packed(entry.dtype, entry.shape, parts[BOOK], parts[OFFSETS], parts[TILES])
