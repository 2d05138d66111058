"""What the buffers of a DFloat11 checkpoint hold (arXiv 2504.11651; versions 0.2.0 to 0.5.0).

The weights of a group of matrices, all bfloat16, are flattened and concatenated: n weights. Exponents are
Huffman coded, codes of up to 32 bits, one stream, most significant bit first; sign and mantissa are kept.

    luts              uint8 [k + 1, 256]  k tables by the next byte of a code; an entry from 240 on is a pointer to
                                          table 256 - entry, for the byte after; the last row holds code lengths
    encoded_exponent  uint8 [bytes]       the stream, padded to a whole byte
    sign_mantissa     uint8 [n]           sign in bit 7, mantissa below
    gaps              uint8 [320 blocks]  5 bits per window of 8 bytes, most significant bit first: the bit of the
                                          window at which the first code that begins in it begins
    output_positions  uint32 [blocks + 1] number of the first weight whose code begins in each block of 512 windows,
                                          then n; stored as uint8

`split_positions` says where the n weights are cut into matrices and is not needed to decode. Exponents of 240
and more (weights from 2^113 on) cannot be told from pointers and never occur.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tersor.format.errors import WrongShape

POINTER = 240  # entries from here on are pointers
MAX_BITS = 32  # of a code
WINDOW_BYTES = 8  # `bytes_per_thread` in their configuration
BLOCK_WINDOWS = 512  # `threads_per_block`
BLOCK_BYTES = WINDOW_BYTES * BLOCK_WINDOWS
GAP_BITS = 5
GAP_BYTES = BLOCK_WINDOWS * GAP_BITS // 8  # of a block
MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class Buffers:
    """The five buffers of one group, contiguous, on one device."""

    luts: torch.Tensor
    encoded_exponent: torch.Tensor
    sign_mantissa: torch.Tensor
    output_positions: torch.Tensor
    gaps: torch.Tensor

    def __post_init__(self) -> None:
        for name, tensor in vars(self).items():
            if tensor.dtype not in (torch.uint8, torch.uint32) or not tensor.is_contiguous():
                raise WrongShape(f"dfloat11 buffer {name!r}: {tensor.dtype} is not a contiguous uint8 tensor")

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return self.sign_mantissa.numel()

    @property
    def blocks(self) -> int:
        """Blocks of the stream."""
        return -(-self.encoded_exponent.numel() // BLOCK_BYTES)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(tensor.nbytes for tensor in vars(self).values())

    def check(self) -> None:
        """Raise WrongShape unless the buffers' sizes fit each other; values are not looked at."""
        stream, positions = self.encoded_exponent.numel(), self.output_positions.nbytes
        if self.luts.dim() != 2 or self.luts.shape[1] != 256 or not 2 <= self.luts.shape[0] <= 18:
            raise WrongShape(f"dfloat11 luts have shape {tuple(self.luts.shape)}, not [2 to 18, 256]")
        if max(stream, self.weights) > MAX_ELEMENTS:
            raise WrongShape(
                f"dfloat11 buffers of {max(stream, self.weights)} bytes are too large for 32 bits"
            )
        if self.gaps.numel() < GAP_BYTES * self.blocks or positions < 4 * self.blocks or positions % 4:
            raise WrongShape(
                f"dfloat11 buffers: {stream} bytes of codes need {GAP_BYTES * self.blocks} bytes of gaps and "
                f"{4 * self.blocks + 4} of output positions, there are {self.gaps.numel()} and {positions}; "
                "the data is damaged, or not of 8 bytes per thread and 512 threads per block"
            )
        if (self.weights > 0) != (stream > 0):
            raise WrongShape(f"dfloat11 buffers: {stream} bytes of codes for {self.weights} weights")
