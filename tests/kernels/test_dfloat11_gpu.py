"""DFloat11's buffers on CUDA against the reference on the CPU, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from make_golden_dfloat11 import PATH, bits

from tersor.kernels.dfloat11 import device, encode
from tersor.kernels.dfloat11 import ops as dfloat11_ops
from tersor.kernels.dfloat11.layout import Buffers

pytestmark = pytest.mark.gpu
GUARD = 4096  # weights around a result that must stay as they are


def moved(buffers: Buffers) -> Buffers:
    return Buffers(*(tensor.cuda() for tensor in vars(buffers).values()))


def check(
    weights: torch.Tensor, buffers: Buffers | None = None, decoding: device.Decoding | None = None
) -> None:
    buffers = buffers or encode.encode(weights)
    memory = torch.full((weights.numel() + 2 * GUARD,), -7.0, dtype=torch.bfloat16, device="cuda")
    out = memory[GUARD:-GUARD]
    decoded = device.decode(moved(buffers), out, decoding).cpu()
    wrong = (decoded.view(torch.int16) != weights.reshape(-1).view(torch.int16)).nonzero()
    assert not len(wrong), f"{len(wrong)} of {weights.numel()} are wrong, the first at {int(wrong[0])}"
    assert (memory[:GUARD] == -7).all()
    assert (memory[-GUARD:] == -7).all()


def gaussian(n: int) -> torch.Tensor:
    return (torch.randn(n) * 0.02).bfloat16()


@pytest.mark.parametrize("n", [1, 5, 7, 8, 9, 100, 3000, 12345, 24691, 40001, 1 << 20])
def test_gaussian_weights(n: int) -> None:
    check(gaussian(n))


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_every_build(groups: int) -> None:
    check(gaussian(3_000_000), decoding=device.Decoding(groups))


def test_golden_buffers_of_the_official_encoder() -> None:
    with np.load(PATH) as file:
        buffers = Buffers(**{name: torch.from_numpy(file[name]) for name in file.files})
    check(torch.from_numpy(bits()).view(torch.bfloat16), buffers)


def test_codes_too_short_for_the_rows() -> None:
    check(torch.full((300_000,), 1.5, dtype=torch.bfloat16))
    check(torch.where(torch.rand(300_000) < 0.9, torch.zeros(300_000), torch.randn(300_000)).bfloat16())


def test_short_codes_here_and_there() -> None:
    weights = gaussian(500_000)
    for at in (0, 20_000, 123_456, 499_000):
        weights[at : at + 3000] = 0.02
    check(weights)


def test_long_codes() -> None:
    counts = np.zeros(256, np.int64)
    counts[60:91] = [1 << max(i - 1, 0) for i in range(31)]
    exponents = torch.cat([torch.randint(60, 91, (100_000,)), torch.full((4000,), 60)]).short()
    weights = (exponents << 7).view(torch.bfloat16)
    check(weights, encode.encode(weights, encode.Code.of(counts)))


def test_all_bit_patterns_below_the_pointers() -> None:
    patterns = torch.arange(1 << 16, dtype=torch.int32)
    patterns = patterns[(patterns >> 7 & 0xFF) < 240]
    check(patterns[torch.randperm(len(patterns))].to(torch.int16).view(torch.bfloat16))


def test_the_encoder_on_the_gpu_writes_the_same() -> None:
    weights = gaussian(200_000)
    for name, tensor in vars(encode.encode(weights.cuda())).items():
        assert torch.equal(tensor.cpu(), getattr(encode.encode(weights), name)), name


@pytest.mark.parametrize("name", ["luts", "encoded_exponent", "sign_mantissa", "output_positions", "gaps"])
def test_damage_stays_within_the_result(name: str) -> None:
    buffers = encode.encode(gaussian(200_001))
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        damaged = getattr(buffers, name).clone()
        where = torch.randint(0, damaged.numel(), (300,), generator=generator)
        damaged.view(-1)[where] = torch.randint(0, 256, (300,), generator=generator, dtype=torch.uint8)
        memory = torch.full((200_001 + 2 * GUARD,), -7.0, dtype=torch.bfloat16, device="cuda")
        device.decode(moved(replace(buffers, **{name: damaged})), memory[GUARD:-GUARD])
        assert (memory[:GUARD] == -7).all()
        assert (memory[-GUARD:] == -7).all()


def test_a_buffer_in_the_middle_of_another() -> None:
    weights = gaussian(30_000)
    buffers = encode.encode(weights)
    shifted = []
    for tensor in vars(buffers).values():
        memory = torch.zeros(tensor.numel() + 1, dtype=torch.uint8, device="cuda")
        memory[1:] = tensor.reshape(-1)
        shifted.append(memory[1:].view(tensor.shape))
    decoded = torch.ops.tersor.dfloat11_decode(*shifted)
    assert torch.equal(decoded.cpu().view(torch.int16), weights.view(torch.int16))


def test_it_can_be_captured_and_compiled() -> None:
    weights = gaussian(100_000)
    parts = tuple(vars(moved(encode.encode(weights))).values())
    compiled = torch.compile(torch.ops.tersor.dfloat11_decode, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*parts).cpu(), weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoded = dfloat11_ops.decode_on_cuda(*parts)
    decoded.fill_(float("nan"))
    graph.replay()
    assert torch.equal(decoded.cpu(), weights)
