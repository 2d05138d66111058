"""Products of quantised weights on this GPU, against cuBLAS on their dequantised bfloat16, in one run.

Random codes, statistics and outliers in the form they are stored in (a product's time does not depend on them,
but for how many outliers there are and where), packed on the GPU. Before anything is timed the packed form
decodes to the bits that the stored one stands for, and the product's error against float64 is at most 1.2 times
cuBLAS's. Rivals of the same run: torch's int4 product (tinygemm), which has groups but no outliers, and
cuSPARSE for the outliers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from tersor.format.constants import TILE_COLS, TILE_ROWS
from tersor.format.errors import VerificationError
from tersor.format.layout import row_bytes
from tersor.kernels import (
    measure,
    quantized_ops,  # noqa: F401  (defines the operators)
)
from tersor.kernels.bench import SHAPES
from tersor.kernels.fused.device import Matrix
from tersor.kernels.spqr import (
    device,
    ops,  # noqa: F401  (defines the operators)
)
from tersor.kernels.spqr.layout import Geometry, geometry_of

TOKENS = (1, 2, 4, 8, 16, 64, 512)
_UNIT = -5
_DELTA = 0.5  # standard deviation of outliers, in units
_TINYGEMM_TOKENS = 16  # more are not what it is for
WORST_ERROR = 1.2  # of the product, times cuBLAS's own


@dataclass(frozen=True)
class Kind:
    """What is stored: FORMAT.md's parameters, and the share of outliers; `full_row`: one row is full of them."""

    bits: int
    group: int
    run: int
    stat_bits: int
    outliers: float = 0.005
    full_row: bool = False

    def __str__(self) -> str:
        row = " and a full row" if self.full_row else ""
        return f"{self.bits} bits, g {self.group}, {100 * self.outliers:g} % outliers{row}"


FOUR_BITS = Kind(4, 32, 64, 4)
THREE_BITS = Kind(3, 16, 64, 4)
KINDS = (
    FOUR_BITS,
    THREE_BITS,
    replace(FOUR_BITS, outliers=0.0),
    replace(FOUR_BITS, outliers=0.02),
    replace(FOUR_BITS, full_row=True),
)


@dataclass(frozen=True)
class Product:
    """One product x W^T, times in seconds; `tinygemm` None where torch's int4 product cannot be had."""

    rows: int
    cols: int
    kind: str
    tokens: int
    bits_per_weight: float
    cublas: float
    ours: float
    tinygemm: float | None

    @property
    def ratio(self) -> float:
        """How many times as fast as cuBLAS."""
        return self.cublas / self.ours


@dataclass(frozen=True)
class Sparse:
    """The outliers alone, one token: what they cost our product, and cuSPARSE's product of them; seconds."""

    rows: int
    cols: int
    outliers: float
    ours: float
    cusparse: float


@dataclass(frozen=True)
class Sample:
    """A random matrix: packed, and the weights (rows, cols) that it stands for."""

    matrix: Matrix[Geometry]
    weight: Tensor

    def copies(self) -> list[Matrix[Geometry]]:
        """Enough of the packed form that none stays in the cache."""
        m = self.matrix
        more = measure.copies(m.stages.numel()) - 1
        return [m] + [
            replace(m, stages=m.stages.clone(), places=m.places.clone(), records=m.records.clone())
            for _ in range(more)
        ]


def sample(rows: int, cols: int, kind: Kind) -> Sample:
    """A random matrix of this kind on the GPU, checked: it decodes to what the stored arrays stand for."""
    geometry = geometry_of(rows, cols, kind.bits, kind.group, kind.run, kind.stat_bits)
    assert geometry is not None
    groups = -(-cols // kind.group)
    codes = _bytes(rows, row_bytes(cols, kind.bits))
    levels = _bytes(rows, row_bytes(2 * groups, kind.stat_bits)) if kind.stat_bits else None
    spread = torch.rand(-(-rows // kind.run), groups, 4 if kind.stat_bits else 2, device="cuda")
    stats = (spread * 2.0**-kind.bits).half()
    stats[..., -1] = spread[..., -1] * 2.0 ** (kind.bits - 1)
    outliers = _outliers(rows, cols, kind)
    parameters = ([rows, cols], kind.bits, kind.group, kind.run, kind.stat_bits)
    arrays = (codes, levels, stats.view(torch.uint16))
    packed = torch.ops.tersor.spqr_pack(*arrays, *outliers, *parameters)
    weight = torch.ops.tersor.spqr_dequantize(*arrays, None, *outliers, "BF16", *parameters, _UNIT)
    matrix = Matrix(geometry, packed[0], packed[1], packed[2], _UNIT)
    if not torch.equal(device.decode(matrix).view(torch.int16), weight.view(torch.int16)):
        raise VerificationError(f"{kind}: {rows} x {cols} does not decode to the stored weights on this GPU")
    return Sample(matrix, weight)


def products(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    kinds: Sequence[Kind] = KINDS,
) -> Iterator[Product]:
    """Products as `spqr_linear` makes them, one by one as they are measured."""
    measure.warm_up(torch.device("cuda"))
    for rows, cols in shapes:
        plain = [torch.empty(rows, cols, device="cuda", dtype=torch.bfloat16)]
        plain += [plain[0].clone() for _ in range(measure.copies(2 * rows * cols) - 1)]
        tinygemm = _tinygemm(rows, cols)
        for kind in kinds:
            own = sample(rows, cols, kind)
            for w in plain:
                w.copy_(own.weight)
            packed = own.copies()
            for m in tokens:
                x = torch.randn(m, cols, device="cuda", dtype=torch.bfloat16)
                _check_product(x, own, kind)
                rivals = [[partial(linear, x, w) for w in plain], [partial(product, x, p) for p in packed]]
                if tinygemm and m <= _TINYGEMM_TOKENS:
                    rivals.append([partial(call, x) for call in tinygemm])
                cublas, ours, *theirs = measure.seconds(*rivals)
                bits = own.matrix.bits_per_weight
                yield Product(rows, cols, str(kind), m, bits, cublas, ours, theirs[0] if theirs else None)
            del own, packed


def sparse(
    shapes: Sequence[tuple[int, int]] = SHAPES, shares: Sequence[float] = (0.002, 0.005, 0.01, 0.02)
) -> Iterator[Sparse]:
    """The outliers alone at the densities that SpQR uses."""
    measure.warm_up(torch.device("cuda"))
    for rows, cols in shapes:
        without = sample(rows, cols, replace(FOUR_BITS, outliers=0.0)).copies()
        x = torch.randn(1, cols, device="cuda", dtype=torch.bfloat16)
        for share in shares:
            with_them = sample(rows, cols, replace(FOUR_BITS, outliers=share)).copies()
            mask = torch.rand(rows, cols, device="cuda") < share
            csr = torch.where(mask, 1.0, 0.0).bfloat16().to_sparse_csr()
            theirs = [csr] + [csr.clone() for _ in range(measure.copies(6 * csr.values().numel()) - 1)]
            column = x[0].contiguous()
            plain, all_of_it, cusparse = measure.seconds(
                [partial(product, x, p) for p in without],
                [partial(product, x, p) for p in with_them],
                [partial(torch.mv, c, column) for c in theirs],
            )
            yield Sparse(rows, cols, share, all_of_it - plain, cusparse)


def product(x: Tensor, matrix: Matrix[Geometry]) -> Tensor:
    """The operator on a packed matrix."""
    g = matrix.geometry
    held = (g.rows, g.cols, g.bits, g.group, g.levels, matrix.unit)
    arrays = (matrix.stages, matrix.places, matrix.records)
    y: Tensor = torch.ops.tersor.spqr_linear(x, *arrays, None, None, *held)
    return y


def packing_seconds(rows: int, cols: int, kind: Kind = FOUR_BITS) -> float:
    """Seconds to pack such a matrix from its stored arrays, on the GPU."""
    codes = _bytes(rows, row_bytes(cols, kind.bits))
    groups = -(-cols // kind.group)
    levels = _bytes(rows, row_bytes(2 * groups, kind.stat_bits))
    stats = torch.rand(-(-rows // kind.run), groups, 4, device="cuda").half().view(torch.uint16)
    parameters = ([rows, cols], kind.bits, kind.group, kind.run, kind.stat_bits)
    outliers = _outliers(rows, cols, kind)
    return measure.wall_seconds(
        partial(torch.ops.tersor.spqr_pack, codes, levels, stats, *outliers, *parameters)
    )


def _bytes(rows: int, columns: int) -> Tensor:
    return torch.randint(0, 256, (rows, columns), device="cuda", dtype=torch.uint8)


def _outliers(rows: int, cols: int, kind: Kind) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Counts, places and deltas as stored."""
    if not kind.outliers and not kind.full_row:
        return None, None, None
    mask = torch.rand(rows, cols, device="cuda") < kind.outliers
    if kind.full_row:
        mask[rows // 2] = True
    padded = pad(mask, (0, -cols % TILE_COLS, 0, -rows % TILE_ROWS))
    tiles = padded.view(-1, TILE_ROWS, padded.shape[1] // TILE_COLS, TILE_COLS).transpose(1, 2)
    flat = tiles.reshape(-1, TILE_ROWS * TILE_COLS)
    places = flat.nonzero()[:, 1].to(torch.int16)
    deltas = (torch.randn(len(places), device="cuda") * _DELTA).half()
    counts = flat.sum(1).to(torch.int16)
    return counts.view(torch.uint16), places.view(torch.uint16), deltas.view(torch.uint16)


def _tinygemm(rows: int, cols: int, group: int = 64) -> list[Callable[[Tensor], Tensor]]:
    """torch's int4 product on random weights of this size, over rotating copies; none where it is not to be had."""
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack(_bytes(rows, cols // 2), 8)
    except RuntimeError:
        return []
    grids = torch.rand(cols // group, rows, 2, device="cuda").bfloat16()
    copies = [(packed, grids)] + [
        (packed.clone(), grids.clone()) for _ in range(measure.copies(rows * cols // 2) - 1)
    ]

    def call(weight: Tensor, grid: Tensor, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm(x, weight, group, grid)
        return y

    return [partial(call, *copy) for copy in copies]


def error(y: Tensor, exact: Tensor) -> float:
    """Of a product, relative to the `exact` one (float64), both of any shape."""
    return float((y.double() - exact).norm() / exact.norm())


def _check_product(x: Tensor, own: Sample, kind: Kind) -> None:
    exact = x.double() @ own.weight.double().T
    ours, cublas = error(product(x, own.matrix), exact), error(linear(x, own.weight), exact)
    if not ours <= WORST_ERROR * cublas:
        size = tuple(own.weight.shape)
        raise VerificationError(f"{kind}, {size}, {len(x)} tokens: error {ours:.1e}, cuBLAS has {cublas:.1e}")
