"""`packing.unpack` in torch, on any device, and sixteen-bit arrays read there.

torch has hardly any arithmetic on unsigned integers of 16 and 32 bits, so these are looked at as signed
ones and widened.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(packed: Tensor, width: int, n: int) -> Tensor:
    """The first `n` codes of every row of bytes (rows, ...), (rows, n) uint8."""
    codes = torch.empty((len(packed), n), dtype=torch.uint8, device=packed.device)
    mask = (1 << width) - 1
    for place in range(min(8, n)):
        byte, shift = divmod(place * width, 8)
        wanted = codes[:, place::8]
        bits = packed[:, byte::width][:, : wanted.shape[1]]
        if shift + width > 8:
            high = packed[:, byte + 1 :: width][:, : wanted.shape[1]]
            bits = bits.to(torch.int16) | high.to(torch.int16) << 8
        wanted.copy_(bits >> shift & mask)
    return codes


def widened(stored: Tensor) -> Tensor:
    """uint16 or uint32 as int64."""
    signed, mask = (torch.int16, 0xFFFF) if stored.dtype == torch.uint16 else (torch.int32, 0xFFFFFFFF)
    return stored.view(signed).to(torch.int64) & mask
