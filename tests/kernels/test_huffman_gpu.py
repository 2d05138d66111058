"""The huffman codec on CUDA against the reference on the CPU, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tersor.kernels import ops

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


def test_a_large_matrix() -> None:
    check(gaussian((4096, 4096), torch.bfloat16))


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
