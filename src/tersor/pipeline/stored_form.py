"""One tensor on its way to disk: which codec it gets, its proof, its parts, and the room they need."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from tersor.codec import Packed, encode
from tersor.codec.proof import equals
from tersor.codec.quantized.matrix import Bits
from tersor.codec.quantized.parts import Matrix, entry_of, proven_matrix, same_matrix, to_parts
from tersor.format.constants import CODEC_HUFFMAN, CODEC_RAW, CODEC_SPQR, MANIFEST_KEY
from tersor.format.errors import VerificationError
from tersor.format.layout import (
    BOOK,
    COUNTS,
    DELTAS,
    LEVELS,
    OFFSETS,
    ORDER,
    PLACES,
    STATS,
    STEPS,
    TILES,
    stored_tensors,
    wants_compression,
)
from tersor.format.manifest import TensorEntry, dump_manifest
from tersor.format.parameters import SpqrParameters
from tersor.format.shard import Extent, Shard, dump_header
from tersor.pipeline.shard_writer import Part

_WIDEST = 10**18  # stands for any size or offset when room for a header is reckoned
_STATISTICS, _OUTLIERS = (LEVELS, STATS, ORDER, STEPS), (COUNTS, PLACES, DELTAS)

Matrices = Mapping[str, Matrix]
"""The tensors that were quantised, by name."""


def compressed_form(
    name: str, extent: Extent, data: NDArray[np.uint8], names: Container[str], hasher: Executor
) -> tuple[TensorEntry, list[Part]]:
    """The manifest entry and the stored parts of one tensor, already decoded and compared with `data`.

    `names` are those of all the model's tensors; where one is called as a part would be, the part gives way.
    """
    sha256 = hasher.submit(lambda: hashlib.sha256(data.data).hexdigest())
    free = not any(name + part in names for part in (BOOK, OFFSETS, TILES))
    coded = free and wants_compression(extent.dtype, extent.shape)
    packed = encode(data, extent.dtype, extent.shape) if coded else None
    if packed is None or packed.nbytes >= data.nbytes:
        entry = TensorEntry(CODEC_RAW, extent.dtype, extent.shape, sha256.result())
        return entry, [Part(name, extent.dtype, extent.shape, [data])]
    if not equals(packed, data):
        raise VerificationError(
            f"tensor {name!r}: decoding did not give the original back. This is a fault of tersor or of the "
            f"machine's memory; nothing was lost. Please report it with the tensor's dtype and shape"
        )
    return TensorEntry(CODEC_HUFFMAN, extent.dtype, extent.shape, sha256.result()), _parts(name, packed)


def _parts(name: str, packed: Packed) -> list[Part]:
    """The stored parts of a compressed tensor, as `stored_tensors` declares them."""
    offsets = packed.offsets.astype("<u4").view(np.uint8)
    return [
        Part(name, "U8", (0,), []),
        Part(name + BOOK, "U8", packed.book.shape, [packed.book]),
        Part(name + OFFSETS, "U32", packed.offsets.shape, [offsets]),
        Part(name + TILES, "U8", packed.tiles.shape, [packed.tiles]),
    ]


def quantized_form(name: str, extent: Extent, q: Matrix) -> tuple[TensorEntry, list[Part]]:
    """The manifest entry and the stored parts of a quantised tensor, already taken apart again and compared."""
    parts = to_parts(q)
    entry = entry_of(q, parts)
    if (entry.dtype, entry.shape) != (extent.dtype, extent.shape):
        raise VerificationError(
            f"tensor {name!r} is {extent.dtype} {list(extent.shape)}, and was quantised as {entry.dtype} "
            f"{list(entry.shape)}. This is a fault of tersor; please report it with the model's name"
        )
    if not same_matrix(proven_matrix(entry, parts, f"tensor {name!r}"), q):
        raise VerificationError(
            f"tensor {name!r}: its stored form did not give the quantised weights back. This is a fault of tersor or "
            f"of the machine's memory. Please report it with the tensor's dtype and shape"
        )
    dtypes = {part.name: part.dtype for part in stored_tensors(name, entry)}
    return entry, [
        Part(name, "U8", (0,), []),
        *(
            Part(name + suffix, dtypes[name + suffix], array.shape, [array.reshape(-1).view(np.uint8)])
            for suffix, array in parts.items()
        ),
    ]


def split_bits(name: str, entry: TensorEntry, sizes: Mapping[str, int]) -> Bits:
    """What a quantised tensor's parts, of these sizes in bytes, hold."""

    def bits(suffixes: tuple[str, ...]) -> int:
        return 8 * sum(sizes.get(name + suffix, 0) for suffix in suffixes)

    statistics, outliers = bits(_STATISTICS), bits(_OUTLIERS)
    codes = 8 * sum(sizes.values()) - statistics - outliers
    return Bits(math.prod(entry.shape), codes, statistics, outliers)


def header_room(shard: Shard, quantized: Container[str]) -> int:
    """Bytes that the header of this shard's compressed form takes at most; `quantized` are names."""

    def parts(entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Extent]]:
        for name, entry in entries.items():
            for part in stored_tensors(name, entry):
                unknown = entry.parameters is not None  # group and rows decide
                shape = tuple(_WIDEST if n is None or unknown else n for n in part.shape)
                yield part.name, Extent(part.dtype, shape, _WIDEST, _WIDEST)

    entries = {name: _largest_entry(e, name in quantized) for name, e in shard.tensors.items()}
    return len(dump_header({**shard.metadata, MANIFEST_KEY: dump_manifest(entries)}, parts(entries)))


def _largest_entry(extent: Extent, quantized: bool) -> TensorEntry:
    """An entry that takes at least as much room as the tensor's will."""
    sha256 = "0" * 64
    if quantized:  # that of codec spqr, with all its parts, is larger than that of integers
        parameters = SpqrParameters(8, _WIDEST, _WIDEST, 8, -149, True, _WIDEST, sha256)
        return TensorEntry(CODEC_SPQR, extent.dtype, extent.shape, sha256, parameters)
    codec = CODEC_HUFFMAN if wants_compression(extent.dtype, extent.shape) else CODEC_RAW
    return TensorEntry(codec, extent.dtype, extent.shape, sha256)
