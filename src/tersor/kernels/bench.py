"""What the kernels do on this GPU, against cuBLAS on the uncompressed matrix, in one run.

Gaussian weights, timed as `tersor.kernels.measure` says; every result is checked before it is timed:
a decoder that loses a bit or a product with a larger error than cuBLAS's is an exception, not a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.functional import linear

from tersor.format.errors import VerificationError
from tersor.kernels import (
    measure,
    ops,  # noqa: F401  (defines the operators)
)
from tersor.kernels.fused.device import Matrix
from tersor.kernels.huffman import device as huffman
from tersor.kernels.window import device as window
from tersor.kernels.window.layout import Geometry

SHAPES = (  # out x in features: Llama-8B's and 70B's layers
    (4096, 4096),
    (6144, 4096),
    (14336, 4096),
    (28672, 4096),
    (4096, 14336),
    (8192, 8192),
    (57344, 8192),
    (8192, 28672),
)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SPREAD = 0.02  # standard deviation of the weights
_WORST_ERROR = 1.2  # of the product, times cuBLAS's own


@dataclass(frozen=True)
class Product:
    """One product x W^T: `rows` out and `cols` in features. Times in seconds, `ratio` = cuBLAS over ours."""

    rows: int
    cols: int
    tokens: int
    fused: bool
    bits_per_weight: float
    cublas: float
    ours: float

    @property
    def ratio(self) -> float:
        """How many times as fast as cuBLAS."""
        return self.cublas / self.ours


@dataclass(frozen=True)
class Codec:
    """Decoding and encoding one matrix; bytes per second of bfloat16."""

    rows: int
    cols: int
    layout: str
    bits_per_weight: float
    decode: float
    encode: float


def products(shapes: Sequence[tuple[int, int]] = SHAPES, tokens: Sequence[int] = TOKENS) -> Iterator[Product]:
    """Products in the `fast` layout, as `window_linear` makes them, one by one as they are measured."""
    measure.warm_up(torch.device("cuda"))
    for rows, cols in shapes:
        weight = _gaussian(rows, cols)
        packed = window.pack(weight)
        ours = _rotating(packed)
        plain = [weight] + [weight.clone() for _ in range(measure.copies(2 * weight.numel()) - 1)]
        for m in tokens:
            x = torch.randn(m, cols, device="cuda", dtype=torch.bfloat16)
            _check_product(x, weight, packed)
            cublas, fast = measure.seconds(
                [partial(linear, x, w) for w in plain],
                [partial(_product, x, p) for p in ours],
            )
            yield Product(rows, cols, m, window.fuses(m, x.device), packed.bits_per_weight, cublas, fast)


def codecs(shapes: Sequence[tuple[int, int]] = (*SHAPES, (128256, 4096))) -> Iterator[Codec]:
    """Decoding to memory and encoding from it, both layouts, one by one as they are measured."""
    measure.warm_up(torch.device("cuda"))
    for rows, cols in shapes:
        weight, nbytes = _gaussian(rows, cols), 2.0 * rows * cols
        stored = huffman.encode(weight, "BF16")
        out = torch.empty_like(weight)
        _check_bits(huffman.decode(*stored, "BF16", out), weight, "huffman")
        many = [stored] + [
            (stored[0].clone(), stored[1].clone(), stored[2])
            for _ in range(measure.copies(stored[0].numel()) - 1)
        ]
        (decoding,) = measure.seconds([partial(huffman.decode, *s, "BF16", out) for s in many])
        encoding = measure.wall_seconds(partial(huffman.encode, weight, "BF16"))
        bits = 8 * sum(t.numel() * t.element_size() for t in stored) / weight.numel()
        yield Codec(rows, cols, "compact", bits, nbytes / decoding, nbytes / encoding)

        packed = window.pack(weight)
        _check_bits(window.decode(packed), weight, "fast")
        (decoding,) = measure.seconds([partial(window.decode, p) for p in _rotating(packed)])
        encoding = measure.wall_seconds(partial(window.pack, weight))
        yield Codec(rows, cols, "fast", packed.bits_per_weight, nbytes / decoding, nbytes / encoding)


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _rotating(packed: Matrix[Geometry]) -> list[Matrix[Geometry]]:
    """The matrix and enough copies of it that none stays in the cache."""
    copies = [packed]
    for _ in range(measure.copies(packed.stages.numel()) - 1):
        stages, places, records = packed.stages.clone(), packed.places.clone(), packed.records.clone()
        copies.append(replace(packed, stages=stages, places=places, records=records))
    return copies


def _gaussian(rows: int, cols: int) -> torch.Tensor:
    return (torch.randn(rows, cols, device="cuda") * _SPREAD).bfloat16()


def _product(x: torch.Tensor, packed: Matrix[Geometry]) -> torch.Tensor:
    geometry = packed.geometry
    y: torch.Tensor = torch.ops.tersor.window_linear(
        x, packed.stages, packed.places, packed.records, None, geometry.rows, geometry.cols, False
    )
    return y


def _check_bits(decoded: torch.Tensor, weight: torch.Tensor, what: str) -> None:
    if not torch.equal(decoded.view(torch.int16), weight.view(torch.int16)):
        raise VerificationError(
            f"{what}: {tuple(weight.shape)} does not decode to the original bits on this GPU"
        )


def _check_product(x: torch.Tensor, weight: torch.Tensor, packed: Matrix[Geometry]) -> None:
    exact = x.double() @ weight.double().T

    def error(y: torch.Tensor) -> float:
        return float((y.double() - exact).norm() / exact.norm())

    ours, cublas = error(_product(x, packed)), error(linear(x, weight))
    if not ours <= _WORST_ERROR * cublas:
        raise VerificationError(f"product {tuple(weight.shape)}: error {ours:.1e}, cuBLAS has {cublas:.1e}")
