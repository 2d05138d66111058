"""DFloat11's buffers: what the official encoder made decodes to the bits it was made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from make_golden_dfloat11 import PATH, bits
from torch._subclasses.fake_tensor import FakeTensorMode

import dfloat11_official as official
from tersor.format.errors import WrongShape
from tersor.kernels import ops  # noqa: F401  (defines the operator)
from tersor.kernels.dfloat11 import encode as encoding
from tersor.kernels.dfloat11.layout import BLOCK_BYTES, Buffers

needs_official = pytest.mark.skipif(not official.is_installed(), reason="dfloat11 is not installed")


def gaussian(n: int) -> torch.Tensor:
    return (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.02).bfloat16()


def decode(buffers: Buffers) -> torch.Tensor:
    decoded: torch.Tensor = torch.ops.tersor.dfloat11_decode(*vars(buffers).values())
    return decoded


def golden() -> Buffers:
    with np.load(PATH) as file:
        return Buffers(**{name: torch.from_numpy(file[name]) for name in file.files})


def check(buffers: Buffers, weights: torch.Tensor) -> None:
    decoded = decode(buffers)
    assert decoded.dtype == torch.bfloat16
    assert torch.equal(decoded.view(torch.int16), weights.reshape(-1).view(torch.int16))


def test_golden_buffers_of_the_official_encoder() -> None:
    buffers = golden()
    assert buffers.blocks == 2
    assert int(buffers.luts[-1].max()) > 8  # two tables are walked
    assert np.array_equal(decode(buffers).view(torch.int16).numpy().view(np.uint16), bits())


@needs_official
@pytest.mark.parametrize("n", [200, 3000, 40001])
def test_the_official_encoders_buffers(n: int) -> None:
    weights = gaussian(n)
    check(official.encode([weights[: n // 3], weights[n // 3 :]]).buffers, weights)


@needs_official
@pytest.mark.parametrize("n", [200, 3000, 12345, 40001])
def test_our_encoder_writes_the_official_bytes(n: int) -> None:
    weights = gaussian(n)
    theirs = official.encode([weights])
    ours = encoding.encode(weights, theirs.code)
    check(ours, weights)
    for name in ("encoded_exponent", "sign_mantissa", "output_positions", "gaps"):
        assert torch.equal(getattr(ours, name), getattr(theirs.buffers, name)), name


@pytest.mark.parametrize("n", [1, 2, 7, 64, 5000, 30000])
def test_our_own_code(n: int) -> None:
    check(encoding.encode(gaussian(n)), gaussian(n))


def test_pieces_join(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoding.encode(gaussian(30000))
    monkeypatch.setattr(encoding, "_PIECE", 777)
    for name, tensor in vars(encoding.encode(gaussian(30000))).items():
        assert torch.equal(tensor, getattr(whole, name)), name


def test_one_exponent_takes_one_bit() -> None:
    weights = torch.full((9000,), -1.5, dtype=torch.bfloat16)
    buffers = encoding.encode(weights)
    assert buffers.encoded_exponent.numel() == 9000 // 8
    check(buffers, weights)


def test_long_codes_walk_four_tables() -> None:
    counts = np.zeros(256, np.int64)
    counts[60:91] = [1 << max(i - 1, 0) for i in range(31)]  # 30 bits for the rarest
    code = encoding.Code.of(counts)
    assert code.lengths.max() == 30
    exponents = torch.randint(60, 91, (6000,), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    weights = (exponents << 7).view(torch.bfloat16)
    check(encoding.encode(weights, code), weights)


def test_exponents_like_pointers_are_refused() -> None:
    with pytest.raises(ValueError, match="240"):
        encoding.encode(torch.tensor([1.0, 2.0**114], dtype=torch.bfloat16))


def test_nothing() -> None:
    none = torch.zeros(0, dtype=torch.uint8)
    assert decode(Buffers(torch.zeros(2, 256, dtype=torch.uint8), none, none, none, none)).shape == (0,)


@pytest.mark.parametrize("name", ["luts", "encoded_exponent", "sign_mantissa", "output_positions", "gaps"])
def test_damage_gives_wrong_weights_at_worst(name: str) -> None:
    buffers = encoding.encode(gaussian(12345))
    damaged = getattr(buffers, name).clone()
    generator = torch.Generator().manual_seed(2)
    where = torch.randint(0, damaged.numel(), (100,), generator=generator)
    damaged.view(-1)[where] = torch.randint(0, 256, (100,), generator=generator, dtype=torch.uint8)
    assert decode(replace(buffers, **{name: damaged})).shape == (12345,)


@pytest.mark.parametrize(
    "change",
    [
        {"gaps": torch.zeros(319, dtype=torch.uint8)},
        {"output_positions": torch.zeros(7, dtype=torch.uint8)},
        {"luts": torch.zeros((1, 256), dtype=torch.uint8)},
        {"luts": torch.zeros((3, 255), dtype=torch.uint8)},
        {"encoded_exponent": torch.zeros(0, dtype=torch.uint8)},
        {"encoded_exponent": torch.zeros(2 * BLOCK_BYTES, dtype=torch.uint8)},
        {"sign_mantissa": torch.zeros(100, dtype=torch.int16)},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_errors(change: dict[str, torch.Tensor]) -> None:
    parts = {**vars(encoding.encode(gaussian(3000))), **change}
    with pytest.raises(WrongShape):
        torch.ops.tersor.dfloat11_decode(*parts.values())


def test_the_fake_knows_the_shape() -> None:
    with FakeTensorMode() as mode:
        fake = torch.ops.tersor.dfloat11_decode(*(mode.from_tensor(t) for t in vars(golden()).values()))
    assert (fake.shape, fake.dtype) == ((len(bits()),), torch.bfloat16)


def test_torch_finds_the_operator_well_formed() -> None:
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.tersor.dfloat11_decode.default, tuple(vars(golden()).values()), test_utils=checks
    )
