"""The CPU operators against the reference codec, and their shapes under fake tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tersor.codec import reference
from tersor.format.errors import UnknownDtype
from tersor.kernels import ops

SHAPES = [(1, 64), (16, 256), (17, 257), (33, 300), (40, 64, 3), (7, 5), (100,), ()]


def weight(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash(shape) % 1000)
    return (torch.randn(shape, generator=generator) * 0.02).to(dtype)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ops.TORCH_DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_gives_back_every_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    original = weight(shape, dtype)
    tiles, offsets, book = torch.ops.tersor.huffman_encode(original)
    decoded = torch.ops.tersor.huffman_decode(tiles, offsets, book, ops.safetensors_dtype(dtype), list(shape))
    assert decoded.dtype == dtype
    assert decoded.shape == original.shape
    assert bits(decoded) == bits(original)


def test_encode_stores_the_reference_bytes() -> None:
    original = weight((50, 300), torch.bfloat16)
    tiles, offsets, book = torch.ops.tersor.huffman_encode(original)
    packed = reference.encode(np.frombuffer(bits(original), np.uint8), "BF16", (50, 300))
    assert (tiles.dtype, offsets.dtype, book.dtype) == (torch.uint8, torch.uint32, torch.uint8)
    assert tiles.numpy().tobytes() == packed.tiles.tobytes()
    assert offsets.numpy().tobytes() == packed.offsets.tobytes()
    assert book.numpy().tobytes() == packed.book.tobytes()


def test_encode_takes_a_tensor_that_is_not_contiguous() -> None:
    original = weight((64, 128), torch.bfloat16).t()
    stored = torch.ops.tersor.huffman_encode(original)
    assert bits(torch.ops.tersor.huffman_decode(*stored, "BF16", [128, 64])) == bits(original)


@pytest.mark.parametrize("rows", [[0], [16, 15, 0, 15], [], [39, 3]], ids=str)
def test_rows_are_those_of_the_whole(rows: list[int]) -> None:
    original = weight((40, 300), torch.bfloat16)
    stored = torch.ops.tersor.huffman_encode(original)
    index = torch.tensor(rows, dtype=torch.int64)
    decoded = torch.ops.tersor.huffman_decode_rows(*stored, "BF16", [40, 300], index)
    assert bits(decoded) == bits(original[index])
    assert decoded.shape == (len(rows), 300)


@pytest.mark.parametrize("row", [40, -1])
def test_a_row_outside_is_an_error(row: int) -> None:
    stored = torch.ops.tersor.huffman_encode(weight((40, 300), torch.bfloat16))
    with pytest.raises(IndexError):
        torch.ops.tersor.huffman_decode_rows(*stored, "BF16", [40, 300], torch.tensor([row]))


def test_an_integer_tensor_cannot_be_encoded() -> None:
    with pytest.raises(UnknownDtype, match="int32"):
        torch.ops.tersor.huffman_encode(torch.zeros(64, 64, dtype=torch.int32))


def test_fakes_know_shape_and_dtype_without_data() -> None:
    original = weight((40, 300), torch.bfloat16)
    stored = torch.ops.tersor.huffman_encode(original)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(part) for part in stored]
        whole = torch.ops.tersor.huffman_decode(*fake, "BF16", [40, 300])
        rows = torch.ops.tersor.huffman_decode_rows(
            *fake, "BF16", [40, 300], torch.zeros(5, dtype=torch.int64)
        )
    assert (whole.shape, whole.dtype) == ((40, 300), torch.bfloat16)
    assert (rows.shape, rows.dtype) == ((5, 300), torch.bfloat16)


def many(shapes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    """Matrices, and the arguments that decode them at once, the last of them where to."""
    originals = [weight(shape, torch.bfloat16) for shape in shapes]
    stored = [torch.ops.tersor.huffman_encode(original) for original in originals]
    parts = tuple([one[i] for one in stored] for i in range(3))
    return originals, (*parts, "BF16", [torch.zeros_like(original) for original in originals])


def test_many_are_those_decoded_one_by_one() -> None:
    originals, arguments = many([(40, 300), (17, 257), (1, 64)])
    torch.ops.tersor.huffman_decode_to(*arguments)
    assert [bits(d) for d in arguments[-1]] == [bits(o) for o in originals]


@pytest.mark.parametrize(
    "name", ["huffman_decode", "huffman_decode_rows", "huffman_decode_to", "huffman_encode"]
)
def test_torch_finds_the_operators_well_formed(name: str) -> None:
    original = weight((40, 300), torch.bfloat16)
    stored = (*torch.ops.tersor.huffman_encode(original), "BF16", [40, 300])
    arguments = {
        "huffman_decode": stored,
        "huffman_decode_rows": (*stored, torch.tensor([3, 1])),
        "huffman_decode_to": many([(40, 300), (17, 257)])[1],
        "huffman_encode": (original,),
    }[name]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.tersor, name).default, arguments, test_utils=checks)
