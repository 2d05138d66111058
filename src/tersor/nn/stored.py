"""One compressed tensor inside a module: which parameters hold it, and how it is read.

What a codec stores is declared in `tersor.format.layout.stored_tensors`; here those arrays
are parameters of the module, under the names they have on disk:

    q_proj.weight  ->  q_proj.weight_book, q_proj.weight_offsets, q_proj.weight_tiles

Parameters, not buffers, because device maps and offloading move parameters; of integer
dtype, so that `.to(torch.float16)` leaves them alone; and `requires_grad=False`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tersor.codec.quantized.parts import check_places
from tersor.format.constants import CODEC_HUFFMAN, CODEC_INTEGERS, CODEC_SPQR
from tersor.format.errors import UnknownCodec
from tersor.format.layout import (
    BOOK,
    CODES,
    COUNTS,
    DELTAS,
    LEVELS,
    OFFSETS,
    ORDER,
    PLACES,
    STATS,
    STEPS,
    TILES,
    matrix_shape,
    stored_tensors,
)
from tersor.format.manifest import TensorEntry
from tersor.format.parameters import SpqrParameters
from tersor.kernels import quantized_ops  # noqa: F401  (defines the operators of quantised tensors)
from tersor.kernels.ops import torch_dtype  # importing it defines torch.ops.tersor
from tersor.nn.soundness import check_huffman

# The arrays that a codec's operator takes, in its order.
_ARGUMENTS = {
    CODEC_HUFFMAN: (TILES, OFFSETS, BOOK),
    CODEC_INTEGERS: (TILES, OFFSETS, BOOK, STEPS),
    CODEC_SPQR: (CODES, LEVELS, STATS, ORDER, COUNTS, PLACES, DELTAS),
}


def part_names(name: str, entry: TensorEntry) -> tuple[str, ...]:
    """The parameters that hold the tensor `name`: what its codec stores, less the guard of FORMAT.md."""
    return tuple(part.name for part in stored_tensors(name, entry) if not part.optional)


@dataclass(frozen=True)
class Stored:
    """The parameter `name` of a module, stored as `entry` says and decoded to `dtype`.

    `dtype` is the original dtype unless the module was cast (`.to(torch.float32)`): the
    stored form stays as it is, and the decoded weight is cast as the plain one would be.
    """

    name: str
    entry: TensorEntry
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, entry: TensorEntry) -> Stored:
        """The parameter `name`, decoded to its original dtype."""
        return cls(name, entry, torch_dtype(entry.dtype))

    def __post_init__(self) -> None:
        if self.entry.codec not in _ARGUMENTS:
            raise UnknownCodec(f"parameter {self.name!r}: no operator decodes codec {self.entry.codec!r}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The original shape."""
        return self.entry.shape

    @property
    def held(self) -> tuple[str, ...]:
        """The names, in the module's state, of what holds the weight."""
        return part_names(self.name, self.entry)

    def cast(self, dtype: torch.dtype) -> Stored:
        """The same stored form, decoded to `dtype`."""
        return replace(self, dtype=dtype)

    def parts(self, module: nn.Module) -> dict[str, Tensor]:
        """The stored arrays, by full parameter name."""
        return {name: module.get_parameter(name) for name in part_names(self.name, self.entry)}

    def attach(self, module: nn.Module, parts: Mapping[str, Tensor]) -> None:
        """Put the stored arrays into `module` in place of the plain parameter."""
        module._parameters.pop(self.name, None)
        for name in part_names(self.name, self.entry):
            module.register_parameter(name, nn.Parameter(parts[name], requires_grad=False))

    def device(self, module: nn.Module) -> torch.device:
        """Where the stored arrays are."""
        return module.get_parameter(part_names(self.name, self.entry)[0]).device

    def decode(self, module: nn.Module) -> Tensor:
        """The whole weight."""
        entry, arrays, p = self.entry, self.arrays(module), self.entry.parameters
        op: Callable[..., Tensor] = torch.ops.tersor.huffman_decode
        numbers: tuple[int, ...] = ()
        if entry.codec == CODEC_INTEGERS:
            op = torch.ops.tersor.integers_dequantize
        elif isinstance(p, SpqrParameters):
            op = torch.ops.tersor.spqr_dequantize
            numbers = (p.bits, p.group, p.rows, p.stat_bits, p.unit)
        return op(*arrays, entry.dtype, entry.shape, *numbers).to(self.dtype)

    def check(self, module: nn.Module, where: str) -> None:
        """Raise a FormatError, with `where`, unless kernels may decode the stored arrays (if they are here)."""
        if self.device(module).type == "meta":
            return
        arrays = self.arrays(module)
        if self.entry.codec == CODEC_SPQR:
            named = dict(zip(_ARGUMENTS[CODEC_SPQR], arrays, strict=True))
            small = {k: v.detach().cpu().numpy() for k, v in named.items() if v is not None and k != CODES}
            check_places(self.entry, small, where)
            return
        tiles, offsets, book = arrays[:3]
        assert tiles is not None and offsets is not None and book is not None
        dtype = self.entry.dtype if self.entry.codec == CODEC_HUFFMAN else "F8_E4M3"
        check_huffman(tiles, offsets, book, dtype, self.shape, where)

    def rows(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Rows of the format's matrix: [n, columns] for int64 `rows` [n]."""
        entry = self.entry
        if entry.codec != CODEC_HUFFMAN:
            return self.decode(module).reshape(matrix_shape(self.shape))[rows]
        decoded: Tensor = torch.ops.tersor.huffman_decode_rows(
            *self.arrays(module), entry.dtype, entry.shape, rows
        )
        return decoded.to(self.dtype)

    def select(self, module: nn.Module, index: int) -> Tensor:
        """`weight[index]`: only its rows are decoded where the matrix keeps them apart."""
        matrix_rows, _ = matrix_shape(self.shape)
        if matrix_rows % self.shape[0]:
            return self.decode(module)[index]
        each = matrix_rows // self.shape[0]
        rows = torch.arange(index * each, (index + 1) * each, device=self.device(module))
        return self.rows(module, rows).reshape(self.shape[1:])

    def restore(self, module: nn.Module) -> Tensor:
        """The whole weight, after removing the stored arrays from `module`."""
        weight = self.decode(module)
        for name in part_names(self.name, self.entry):
            del module._parameters[name]
        return weight

    def arrays(self, module: nn.Module) -> tuple[Tensor | None, ...]:
        """The operator's arrays; None for those that this tensor does not have."""
        # by attribute, not from `_parameters`: offloading puts its own tensors there before each forward
        return tuple(getattr(module, self.name + suffix, None) for suffix in _ARGUMENTS[self.entry.codec])
