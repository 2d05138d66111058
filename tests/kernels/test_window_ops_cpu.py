"""The operators of the `fast` layout on the CPU, and their shapes under fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear

from tersor.kernels import ops  # noqa: F401  (defines the operators)
from tersor.kernels.fused.variant import Variant
from tersor.kernels.window.layout import STAGE_BYTES, Geometry
from tersor.kernels.window.linear import FUSED_TOKENS, MAX_TOKENS, variant_for

H200 = (132, 227 * 1024)
A100 = (108, 166912)
SMALL_GPU = (46, 99 * 1024)


def weight(rows: int, cols: int) -> torch.Tensor:
    return (torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) * 0.02).bfloat16()


@pytest.mark.parametrize("shape", [(16, 64), (33, 100), (20, 1030)], ids=str)
def test_decode_gives_back_every_bit(shape: tuple[int, int]) -> None:
    original = weight(*shape)
    packed = torch.ops.tersor.window_pack(original)
    there = torch.zeros(shape, dtype=torch.bfloat16)
    torch.ops.tersor.window_decode_to(*packed, there)
    for decoded in (torch.ops.tersor.window_decode(*packed, *shape), there):
        assert torch.equal(decoded.view(torch.int16), original.view(torch.int16))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.tersor.window_decode_to.default, (*packed, there), test_utils=checks)


@pytest.mark.parametrize("exact", [False, True])
def test_linear_is_torchs_own(exact: bool) -> None:
    original, bias = weight(24, 96), torch.randn(24).bfloat16()
    packed = torch.ops.tersor.window_pack(original)
    x = torch.randn(2, 3, 96).bfloat16()
    y = torch.ops.tersor.window_linear(x, *packed, bias, 24, 96, exact)
    assert torch.equal(y, linear(x, original, bias))


def test_shapes_are_known_without_data() -> None:
    original = weight(24, 1100)
    real = torch.ops.tersor.window_pack(original)
    with FakeTensorMode() as mode:
        blocks, places, records = (mode.from_tensor(part) for part in real)
        x = torch.empty(5, 7, 1100, dtype=torch.bfloat16)
        y = torch.ops.tersor.window_linear(x, blocks, places, records, None, 24, 1100, False)
        decoded = torch.ops.tersor.window_decode(blocks, places, records, 24, 1100)
    assert (y.shape, y.dtype) == ((5, 7, 24), torch.bfloat16)
    assert (decoded.shape, decoded.dtype) == ((24, 1100), torch.bfloat16)


def test_linear_compiles_without_a_graph_break() -> None:
    original = weight(24, 96)
    packed = torch.ops.tersor.window_pack(original)
    compiled = torch.compile(
        lambda x: torch.ops.tersor.window_linear(x, *packed, None, 24, 96, False),
        fullgraph=True,
        backend="aot_eager",
    )
    x = torch.randn(3, 96).bfloat16()
    assert torch.equal(compiled(x), linear(x, original))


@pytest.mark.parametrize("gpu", [H200, A100, SMALL_GPU], ids=["h200", "a100", "small"])
@pytest.mark.parametrize("rows", [16, 576, 4096, 6144, 14336, 57344])
def test_every_build_fits_its_gpu(gpu: tuple[int, int], rows: int) -> None:
    multiprocessors, shared = gpu
    for cols in (64, 4096, 28672):
        for tokens in range(1, MAX_TOKENS + 1):
            variant = variant_for(tokens, Geometry(rows, cols), multiprocessors, shared)
            assert tokens <= variant.tokens <= 2 * tokens + 14
            assert variant.shared(STAGE_BYTES) * variant.blocks_per_sm <= shared
            assert variant.threads <= 1024
            launch = variant.launch(Geometry(rows, cols), multiprocessors)
            assert 1 <= launch.blocks[0] <= Geometry(rows, cols).strips


def test_more_tokens_than_a_launch_takes_are_refused_by_the_choice() -> None:
    assert FUSED_TOKENS >= MAX_TOKENS
    with pytest.raises(ValueError, match="at most 32"):
        variant_for(MAX_TOKENS + 1, Geometry(16, 64), *H200)


def test_shared_memory_is_what_the_kernel_lays_out() -> None:
    # rings 8 * (2 * 2816 + 1024), sums 2 * 8 * 8 * 16 floats, no slice of x
    assert Variant(8, 8, 2, 2).shared(STAGE_BYTES) == 8 * 6656 + 2 * 8 * 8 * 16 * 4
