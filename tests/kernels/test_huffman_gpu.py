"""The huffman codec on CUDA against the reference on the CPU, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.format.dtypes import KINDS
from tersor.kernels import ops
from tersor.kernels.huffman import device
from tersor.kernels.launcher import shared_limit

pytestmark = pytest.mark.gpu

SHAPES = [(1, 64), (16, 256), (17, 257), (33, 300), (48, 640), (40, 64, 3), (7, 5), (100,), (), (1000, 520)]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def gaussian(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape) * 0.02).to(dtype)


def poison() -> None:
    """Leave garbage in the memory that the next results will occupy."""
    for size in (1 << 12, 1 << 16, 1 << 20):
        torch.full((size,), 0xA5, dtype=torch.uint8, device="cuda")


def check(original: torch.Tensor) -> None:
    name = ops.safetensors_dtype(original.dtype)
    expected = torch.ops.tersor.huffman_encode(original)
    poison()
    stored = torch.ops.tersor.huffman_encode(original.cuda())
    for ours, reference in zip(stored, expected, strict=True):
        assert ours.is_cuda
        assert ours.dtype == reference.dtype
        assert bits(ours) == bits(reference)
    poison()
    decoded = torch.ops.tersor.huffman_decode(*stored, name, list(original.shape))
    assert decoded.dtype == original.dtype
    assert decoded.shape == original.shape
    assert bits(decoded) == bits(original)


@pytest.mark.parametrize("dtype", ops.TORCH_DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_and_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(gaussian(shape, dtype))


def test_all_bit_patterns() -> None:
    check(torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(256, 256))


def test_one_symbol() -> None:
    check(torch.full((64, 512), 1.5, dtype=torch.bfloat16))


def test_fibonacci_counts_give_the_longest_codes() -> None:
    counts = [1, 1]
    while len(counts) < 20:
        counts.append(counts[-1] + counts[-2])
    exponents = torch.cat([torch.full((n,), 100 + i, dtype=torch.int16) for i, n in enumerate(counts)])
    exponents = exponents[torch.randperm(len(exponents))][:16384]
    check((exponents << 7).view(torch.bfloat16).reshape(64, 256))


@pytest.mark.parametrize("kind", ["alike", "few", "steep", "flat"])
@pytest.mark.parametrize("symbols", [2, 3, 30, 255, 256])
def test_the_code_of_any_counts(symbols: int, kind: str) -> None:
    """Package-merge on the GPU breaks ties as the reference does, and meets the limit of 12 bits as it does."""
    generator = np.random.default_rng(symbols)
    counts = {
        "alike": np.full(symbols, 64),
        "few": generator.integers(1, 4, symbols),
        "steep": np.exp2(np.linspace(0, 15, symbols)).astype(np.int64),
        "flat": generator.integers(50, 60, symbols),
    }[kind]
    exponents = np.repeat(generator.permutation(256)[:symbols], counts).astype(np.uint16)
    generator.shuffle(exponents)
    check(torch.from_numpy((exponents << 7).view(np.int16)).view(torch.bfloat16))


@pytest.mark.parametrize("shape", [(4096, 4096), (5000, 4100), (20, 70000)], ids=str)
def test_a_large_matrix(shape: tuple[int, int]) -> None:
    check(gaussian(shape, torch.bfloat16))


@pytest.mark.parametrize("dtype", ops.TORCH_DTYPES.values(), ids=str)
@pytest.mark.parametrize("first", [1, 3, 8])
def test_a_weight_that_begins_anywhere(first: int, dtype: torch.dtype) -> None:
    """A slice of a larger tensor: whole sixteen bytes are read only where they are aligned."""
    whole = gaussian((first + 48 * 512,), dtype)
    ours = torch.ops.tersor.huffman_encode(whole.cuda()[first:].view(48, 512))
    reference = torch.ops.tersor.huffman_encode(whole[first:].clone().view(48, 512))
    for got, expected in zip(ours, reference, strict=True):
        assert bits(got) == bits(expected)


@pytest.mark.parametrize("dtype", ops.TORCH_DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(50, 64), (300, 520), (129, 4096), (40, 9000)], ids=str)
def test_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    original = gaussian(shape, dtype)
    stored = torch.ops.tersor.huffman_encode(original.cuda())
    rows = torch.randint(0, shape[0], (37,))
    name = ops.safetensors_dtype(dtype)
    decoded = torch.ops.tersor.huffman_decode_rows(*stored, name, list(shape), rows.cuda())
    assert bits(decoded) == bits(original.view(torch.uint8)[rows])


def test_decoding_can_be_captured_in_a_graph() -> None:
    original = gaussian((256, 512), torch.bfloat16)
    stored = torch.ops.tersor.huffman_encode(original.cuda())
    torch.ops.tersor.huffman_decode(*stored, "BF16", [256, 512])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoded = torch.ops.tersor.huffman_decode(*stored, "BF16", [256, 512])
    decoded.fill_(float("nan"))
    graph.replay()
    assert bits(decoded) == bits(original)


def test_decoding_compiles_without_a_graph_break() -> None:
    original = gaussian((256, 512), torch.bfloat16)
    stored = torch.ops.tersor.huffman_encode(original.cuda())
    compiled = torch.compile(
        lambda *parts: torch.ops.tersor.huffman_decode(*parts, "BF16", [256, 512]),
        fullgraph=True,
        backend="aot_eager",
    )
    assert bits(compiled(*stored)) == bits(original)


MANY = [
    (17, 257),
    (300, 520),
    (1, 64),
    (16, 256),
    (1000, 1024),
    (33, 300),
    (64, 4096),
    (2000, 512),
    (5, 700),
    (40, 64),
]


@pytest.mark.parametrize("dtype", ops.TORCH_DTYPES.values(), ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 10])
def test_many_at_once(count: int, dtype: torch.dtype) -> None:
    originals = [gaussian(shape, dtype) for shape in MANY[:count]]
    if count > 1:
        originals[1] = torch.full(MANY[1], 1.5).to(dtype)  # another table altogether
    stored = [torch.ops.tersor.huffman_encode(original.cuda()) for original in originals]
    name, decoded = ops.safetensors_dtype(dtype), [torch.empty_like(o, device="cuda") for o in originals]
    for one in decoded:
        one.view(torch.uint8).fill_(0xA5)
    torch.ops.tersor.huffman_decode_to(*map(list, zip(*stored, strict=True)), name, decoded)
    for ours, original in zip(decoded, originals, strict=True):
        assert (ours.dtype, ours.shape) == (original.dtype, original.shape)
        assert bits(ours) == bits(original)


def test_one_decoding_after_another() -> None:
    """Launches overlap; a result is read and its memory written again in between."""
    originals = [gaussian((512, 2048), torch.bfloat16) for _ in range(6)]
    stored = [torch.ops.tersor.huffman_encode(original.cuda()) for original in originals]
    out = torch.empty((512, 2048), dtype=torch.bfloat16, device="cuda")
    for _ in range(20):
        sums = [device.decode(*parts, "BF16", out).double().sum() for parts in stored]
        for total, original in zip(sums, originals, strict=True):
            assert float(total) == pytest.approx(float(original.double().sum()))
        copies = [device.decode(*parts, "BF16", out).clone() for parts in stored]
        for copy, original in zip(copies, originals, strict=True):
            assert bits(copy) == bits(original)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("warps", [8, 10, 12, 16])
def test_every_build(warps: int, early: bool, overlap: bool) -> None:
    original = gaussian((3000, 4096), torch.bfloat16)
    stored = torch.ops.tersor.huffman_encode(original.cuda())
    decoding = device.Decoding(KINDS["BF16"], warps, 2048, overlap, early)
    if decoding.shared > shared_limit(stored[0].device):
        pytest.skip("a smaller GPU")
    poison()
    out = torch.empty_like(original, device="cuda")
    (decoded,) = device.decode_many([stored], "BF16", [out], decoding)
    assert bits(decoded) == bits(original)


def test_lengths_that_make_no_code_do_no_harm() -> None:
    tiles, offsets, _ = torch.ops.tersor.huffman_encode(gaussian((256, 512), torch.bfloat16).cuda())
    for lengths in (
        torch.zeros(256),
        torch.full((256,), 255),
        torch.randint(0, 256, (256,)),
        torch.ones(256),
    ):
        wrong = lengths.to(torch.uint8).cuda()
        assert torch.ops.tersor.huffman_decode(tiles, offsets, wrong, "BF16", [256, 512]).shape == (256, 512)
    torch.cuda.synchronize()
