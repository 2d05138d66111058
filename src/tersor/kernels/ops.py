"""The torch operators of the format's codecs: definitions, shapes, and the CPU.

A module, an adapter or a compiler sees compressed weights only through these operators.
They are functional (but for `..._to`), their scratch is inside, and the shape of a result follows from the
arguments alone (`huffman_encode` excepted: how far data shrinks is not known before), so
`torch.compile` and CUDA graphs can capture them. Implementations for another device
register themselves beside these, with `torch.library.impl("tersor::...", "CUDA")`.

`torch.library.custom_op` would do the same in fewer lines, but costs 8 to 11 microseconds a
call against 2 for a `Library`: at four hundred products a token that is felt.

Arguments, the same everywhere (FORMAT.md, sections 2 and 3):
    tiles    uint8  [16 * offsets[-1] + 16]
    offsets  uint32 [tiles + 1], in units of 16 bytes
    book     uint8  [256], code lengths
    dtype    the original dtype, in safetensors' spelling ("BF16")
    shape    the original shape
    out      contiguous tensors of the original shapes and dtype
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tersor import codec
from tersor.format.errors import UnknownDtype
from tersor.format.layout import Grid, matrix_shape
from tersor.kernels.destination import check_destination

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

library = torch.library.Library("tersor", "DEF")  # type: ignore[no-untyped-call]
_STORED = "Tensor tiles, Tensor offsets, Tensor book, str dtype, int[] shape"
for _schema in (
    f"huffman_decode({_STORED}) -> Tensor",
    f"huffman_decode_rows({_STORED}, Tensor rows) -> Tensor",
    "huffman_decode_to(Tensor[] tiles, Tensor[] offsets, Tensor[] books, str dtype, Tensor(a!)[] out) -> ()",
    "huffman_encode(Tensor weight) -> (Tensor tiles, Tensor offsets, Tensor book)",
):
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors spelling; UnknownDtype if the codec cannot hold it."""
    try:
        return TORCH_DTYPES[dtype]
    except KeyError:
        raise UnknownDtype(
            f"dtype {dtype!r} cannot be entropy coded; known are {', '.join(TORCH_DTYPES)}"
        ) from None


def safetensors_dtype(dtype: torch.dtype) -> str:
    """The safetensors spelling of a torch dtype; UnknownDtype if the codec cannot hold it."""
    try:
        return SAFETENSORS_DTYPES[dtype]
    except KeyError:
        raise UnknownDtype(f"{dtype} cannot be entropy coded; known are {', '.join(TORCH_DTYPES)}") from None


def _packed(
    tiles: torch.Tensor, offsets: torch.Tensor, book: torch.Tensor, dtype: str, shape: Sequence[int]
) -> codec.Packed:
    """The codec's view of the three stored tensors (no copy)."""
    return codec.Packed(dtype, tuple(shape), book.numpy(), offsets.numpy(), tiles.numpy())


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A contiguous tensor's bytes, uint8 1-D (no copy)."""
    view: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return view


def huffman_decode(
    tiles: torch.Tensor, offsets: torch.Tensor, book: torch.Tensor, dtype: str, shape: Sequence[int]
) -> torch.Tensor:
    """The whole tensor: `shape`, of torch dtype `dtype`."""
    decoded = codec.decode(_packed(tiles, offsets, book, dtype, shape))
    return torch.from_numpy(decoded).view(torch_dtype(dtype)).reshape(tuple(shape))


def huffman_decode_rows(
    tiles: torch.Tensor,
    offsets: torch.Tensor,
    book: torch.Tensor,
    dtype: str,
    shape: Sequence[int],
    rows: torch.Tensor,
) -> torch.Tensor:
    """Rows of the format's R x C matrix: [n, C] for `rows` int64 [n], in the order given."""
    if not rows.numel():
        return torch.empty((0, matrix_shape(shape)[1]), dtype=torch_dtype(dtype))
    packed = _packed(tiles, offsets, book, dtype, shape)
    decoded = codec.decode_rows(packed, rows.contiguous().numpy())
    return torch.from_numpy(decoded).view(torch_dtype(dtype))


def huffman_decode_to(
    tiles: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    books: Sequence[torch.Tensor],
    dtype: str,
    out: Sequence[torch.Tensor],
) -> None:
    """Several tensors of one dtype to `out`: a GPU decodes them faster at once than one by one."""
    check_out(offsets, dtype, out)
    for *stored, one in zip(tiles, offsets, books, out, strict=True):
        one.copy_(huffman_decode(stored[0], stored[1], stored[2], dtype, one.shape))


def check_out(offsets: Sequence[torch.Tensor], dtype: str, out: Sequence[torch.Tensor]) -> None:
    """UsageError if a tensor of `out` is not what `huffman_decode_to` can write to."""
    for places, one in zip(offsets, out, strict=True):
        fits = places.numel() == Grid.of(one.shape).tiles + 1
        check_destination("huffman_decode_to", one, torch_dtype(dtype), fits)


def huffman_encode(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The stored form (tiles, offsets, book) of a tensor of any shape."""
    packed = codec.encode(
        _bytes(weight.detach().contiguous()), safetensors_dtype(weight.dtype), tuple(weight.shape)
    )
    return torch.from_numpy(packed.tiles), torch.from_numpy(packed.offsets), torch.from_numpy(packed.book)


def decode_fake(
    tiles: torch.Tensor, offsets: torch.Tensor, book: torch.Tensor, dtype: str, shape: Sequence[int]
) -> torch.Tensor:
    """An empty tensor like the result, on any device; so does the next."""
    return tiles.new_empty(tuple(shape), dtype=torch_dtype(dtype))


def decode_rows_fake(
    tiles: torch.Tensor,
    offsets: torch.Tensor,
    book: torch.Tensor,
    dtype: str,
    shape: Sequence[int],
    rows: torch.Tensor,
) -> torch.Tensor:
    return tiles.new_empty((rows.shape[0], matrix_shape(shape)[1]), dtype=torch_dtype(dtype))


def _decode_to_fake(*arguments: object) -> None:
    """Nothing is returned."""


def _encode_fake(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    context = torch.library.get_ctx()
    tiles = weight.new_empty((context.new_dynamic_size(),), dtype=torch.uint8)
    offsets = weight.new_empty((context.new_dynamic_size(),), dtype=torch.uint32)
    return tiles, offsets, weight.new_empty((256,), dtype=torch.uint8)


for _name, _cpu, _fake in (
    ("huffman_decode", huffman_decode, decode_fake),
    ("huffman_decode_rows", huffman_decode_rows, decode_rows_fake),
    ("huffman_decode_to", huffman_decode_to, _decode_to_fake),
    ("huffman_encode", huffman_encode, _encode_fake),
):
    library.impl(_name, _cpu, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{library.ns}::{_name}", _fake, lib=library)

# The same operators on CUDA, DFloat11's, and those of the `fast` layout; importing them compiles nothing.
from tersor.kernels.dfloat11 import ops as _dfloat11  # noqa: E402, F401
from tersor.kernels.huffman import ops as _huffman_on_cuda  # noqa: E402, F401
from tersor.kernels.window import ops as _window  # noqa: E402, F401
