"""Entropy-coded integers: a weight is `code * step`, the code a signed byte, the step one per column.

`step * code` has 8 + 7 significant bits: exact in float32, rounded once to the weight's type. So every
implementation is bit-exact without further care. The codes are stored as the lossless codec stores
bytes: a symbol of 8 bits, no raw ones, the same tiles and the same decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.codec import Packed, encode
from tersor.codec.quantized.matrix import Bits
from tersor.codec.quantized.rounding import F32

SYMBOL_DTYPE = "F8_E4M3"  # the huffman codec's name for elements that are one symbol and nothing else


@dataclass(frozen=True)
class Integers:
    """One R x C matrix of integer codes."""

    dtype: str  # of the original weights: "BF16", "F16" or "F32"
    codes: npt.NDArray[np.int8]  # (R, C), original column order
    steps: F32  # (C,), positive values of bfloat16

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def outliers(self) -> int:
        """There are none."""
        return 0

    def packed(self, book: npt.NDArray[np.uint8] | None = None) -> Packed:
        """The codes under the huffman codec, with this book or the best one."""
        symbols = np.ascontiguousarray(self.codes).reshape(-1).view(np.uint8)
        return encode(symbols, SYMBOL_DTYPE, self.shape, book)

    def bits(self) -> Bits:
        """Exact storage: the codes as the lossless codec packs bytes, index included; 16 bits a step."""
        return Bits(self.codes.size, 8 * self.packed().nbytes, 16 * self.shape[1], 0)
