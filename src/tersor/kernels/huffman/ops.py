"""The CUDA side of the operators that `tersor.kernels.ops` defines for the huffman codec."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tersor.format.layout import matrix_shape
from tersor.kernels.huffman import device

_library = torch.library.Library("tersor", "IMPL")  # type: ignore[no-untyped-call]
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def huffman_decode(
    tiles: torch.Tensor, offsets: torch.Tensor, book: torch.Tensor, dtype: str, shape: Sequence[int]
) -> torch.Tensor:
    """The whole tensor: `shape`, of torch dtype `dtype`."""
    out = tiles.new_empty(tuple(shape), dtype=_DTYPES[dtype])
    return device.decode(tiles, offsets, book, dtype, out)


def huffman_decode_rows(
    tiles: torch.Tensor,
    offsets: torch.Tensor,
    book: torch.Tensor,
    dtype: str,
    shape: Sequence[int],
    rows: torch.Tensor,
) -> torch.Tensor:
    """Rows of the format's R x C matrix: [n, C] for `rows` int64 [n], in the order given."""
    out = tiles.new_empty((rows.shape[0], matrix_shape(tuple(shape))[1]), dtype=_DTYPES[dtype])
    return device.decode_rows(tiles, offsets, book, dtype, shape, rows, out)


def huffman_encode(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The stored form (tiles, offsets, book) of a tensor of any shape."""
    return device.encode(weight.detach().contiguous(), _NAMES[weight.dtype])


for _name, _function in (
    ("huffman_decode", huffman_decode),
    ("huffman_decode_rows", huffman_decode_rows),
    ("huffman_encode", huffman_encode),
):
    _library.impl(_name, _function, "CUDA")  # type: ignore[no-untyped-call]
