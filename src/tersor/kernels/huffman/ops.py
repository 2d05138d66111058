"""The CUDA side of the operators that `tersor.kernels.ops` defines for the huffman codec.

Same arguments, same results; the fakes there say what a result looks like, so they allocate it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tersor.kernels import ops
from tersor.kernels.huffman import device

_library = torch.library.Library("tersor", "IMPL")  # type: ignore[no-untyped-call]


def huffman_decode(*arguments: Any) -> Tensor:
    """The whole tensor."""
    tiles, offsets, book, dtype, _ = arguments
    return device.decode(tiles, offsets, book, dtype, ops.decode_fake(*arguments))


def huffman_decode_rows(*arguments: Any) -> Tensor:
    """Rows of the matrix."""
    tiles, offsets, book, dtype, shape, rows = arguments
    return device.decode_rows(tiles, offsets, book, dtype, shape, rows, ops.decode_rows_fake(*arguments))


def huffman_decode_to(
    tiles: Sequence[Tensor],
    offsets: Sequence[Tensor],
    books: Sequence[Tensor],
    dtype: str,
    out: Sequence[Tensor],
) -> None:
    """Several tensors, eight in a launch, which does not begin while the one before it ends: others may read `out`."""
    ops.check_out(offsets, dtype, out)
    device.decode_many(list(zip(tiles, offsets, books, strict=True)), dtype, out, overlap=False)


def huffman_encode(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The stored form (tiles, offsets, book) of a tensor of any shape."""
    return device.encode(weight.detach().contiguous(), ops.safetensors_dtype(weight.dtype))


for _function in (
    huffman_decode,
    huffman_decode_rows,
    huffman_decode_to,
    huffman_encode,
):
    _library.impl(_function.__name__, _function, "CUDA")  # type: ignore[no-untyped-call]
