"""DFloat11's buffers made from weights, for tests and benchmarks: seconds for 10^8 weights on a GPU.

The official encoder goes code by code through Python (4 MB/s). Everything it makes follows from where each code
begins, and that is a cumulative sum of lengths; a code is then added into the one or two 32-bit words it falls
into. Given the same code, the buffers are the official ones byte for byte. The code itself is ours by default:
canonical, of length-limited Huffman lengths, without the end-of-stream symbol that the official one has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.codec.huffman import code_lengths
from tersor.kernels.dfloat11.layout import (
    BLOCK_WINDOWS,
    GAP_BITS,
    MAX_BITS,
    POINTER,
    WINDOW_BYTES,
    Buffers,
)

_PIECE = 1 << 23  # weights at a time


@dataclass(frozen=True)
class Code:
    """A prefix code of exponents: per symbol its length (0: none) and its code; `end`: length and code of the end."""

    lengths: NDArray[np.int64]
    codes: NDArray[np.int64]
    end: tuple[int, int] | None = None

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> Code:
        """An optimal code for symbols that occur so often (256,)."""
        if counts[POINTER:].any():
            raise ValueError("DFloat11 cannot hold exponents of 240 and more")
        lengths = code_lengths(counts, MAX_BITS).astype(np.int64)
        codes, code = np.zeros(256, np.int64), 0
        for length in range(1, MAX_BITS + 1):
            for symbol in np.flatnonzero(lengths == length):
                codes[symbol] = code
                code += 1
            code <<= 1
        return cls(lengths, codes)

    def luts(self) -> NDArray[np.uint8]:
        """The hierarchical tables, and the row of lengths."""
        used = [(int(n), int(self.codes[s]), int(s)) for s, n in enumerate(self.lengths) if n]
        prefixes = sorted(
            {(level, c >> (n - 8 * level)) for n, c, _ in used for level in range((n + 7) // 8)}
        )
        if len(prefixes) > 257 - POINTER:
            raise ValueError(f"{len(prefixes)} tables are needed, DFloat11 has {257 - POINTER}")
        luts = np.zeros((len(prefixes) + 1, 256), np.uint8)
        for n, code, symbol in used:
            for row, (level, prefix) in enumerate(prefixes):
                rest = n - 8 * level
                if rest <= 0 or code >> rest != prefix:
                    continue
                if rest <= 8:
                    first = (code & (1 << rest) - 1) << (8 - rest)
                    luts[row, first : first + (1 << (8 - rest))] = symbol
                else:
                    following = code >> (rest - 8)
                    luts[row, following & 0xFF] = 256 - prefixes.index((level + 1, following))
        luts[-1] = self.lengths
        return luts


def encode(weight: torch.Tensor, code: Code | None = None) -> Buffers:
    """The buffers of bfloat16 weights of any shape, on their device."""
    bits = weight.detach().reshape(-1).contiguous().view(torch.int16)
    n, device = bits.numel(), bits.device
    pieces: tuple[torch.Tensor, ...] = bits.split(_PIECE)  # type: ignore[no-untyped-call]
    if code is None:
        counts = torch.zeros(256, dtype=torch.int64, device=device)
        for piece in pieces:
            counts += torch.bincount(piece.int() >> 7 & 0xFF, minlength=256)
        code = Code.of(counts.cpu().numpy())
    lengths = torch.from_numpy(code.lengths).to(device)
    codes = torch.from_numpy(code.codes).to(device)
    total = int(sum(lengths[piece.int() >> 7 & 0xFF].sum() for piece in pieces))

    padding = -total % 8
    stored = (total + padding) // 8
    blocks = -(-stored // (WINDOW_BYTES * BLOCK_WINDOWS))
    words = torch.zeros(stored // 4 + 3, dtype=torch.int64, device=device)  # first bit highest
    gaps = torch.zeros(blocks * BLOCK_WINDOWS + 1, dtype=torch.int64, device=device)
    positions = torch.full((blocks + 1,), n, dtype=torch.int64, device=device)
    at, previous = 0, -1
    for index, piece in enumerate(pieces):
        symbol = piece.int() >> 7 & 0xFF
        length = lengths[symbol]
        ends = length.cumsum(0) + at
        begin = ends - length
        _add_codes(words, begin, length, codes[symbol])
        window = begin // (8 * WINDOW_BYTES)
        before = torch.cat([window.new_full((1,), previous), window[:-1]])
        opens = window != before
        gaps[window[opens]] = begin[opens] % (8 * WINDOW_BYTES)
        opens = window // BLOCK_WINDOWS != before // BLOCK_WINDOWS
        number = torch.arange(len(piece), device=device) + index * _PIECE
        positions[window[opens] // BLOCK_WINDOWS] = number[opens]
        at, previous = int(ends[-1]), int(window[-1])
    positions_used = previous // BLOCK_WINDOWS + 1
    if padding:  # the official encoder opens the window in which the end falls
        window_of_end = total // (8 * WINDOW_BYTES)
        if window_of_end != previous:
            gaps[window_of_end] = total % (8 * WINDOW_BYTES)
        positions_used = window_of_end // BLOCK_WINDOWS + 1
        if code.end is not None:
            _add_codes(words, *(torch.tensor([v], device=device) for v in (total, *code.end)))
    stream = (
        torch.stack([words >> shift & 0xFF for shift in (24, 16, 8, 0)], 1).to(torch.uint8).view(-1)[:stored]
    )
    sign_mantissa = torch.cat([(p >> 8 & 0x80 | p & 0x7F).to(torch.uint8) for p in pieces])
    return Buffers(
        torch.from_numpy(code.luts()).to(device),
        stream.clone(),
        sign_mantissa,
        _little_endian(positions[: positions_used + 1]),
        _pack_gaps(gaps[:-1]),
    )


def _add_codes(words: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, code: torch.Tensor) -> None:
    """Put codes at their bits; no two overlap, so adding is setting."""
    left = 32 - begin % 32 - length  # bits of the word behind the code; negative: it goes on in the next word
    first = torch.where(left >= 0, code << left.clamp(min=0), code >> (-left).clamp(min=0))
    words.index_add_(0, begin // 32, first)
    words.index_add_(0, begin // 32 + 1, code << (32 + left.clamp(max=0)) & 0xFFFFFFFF)


def _little_endian(positions: torch.Tensor) -> torch.Tensor:
    """uint32, stored as uint8."""
    return torch.stack([positions >> shift & 0xFF for shift in (0, 8, 16, 24)], 1).to(torch.uint8).view(-1)


def _pack_gaps(gaps: torch.Tensor) -> torch.Tensor:
    """Eight gaps in five bytes."""
    weights = torch.tensor([1 << (GAP_BITS * (7 - i)) for i in range(8)], device=gaps.device)
    packed = (gaps.view(-1, 8) * weights).sum(1)
    return torch.stack([packed >> shift & 0xFF for shift in (32, 24, 16, 8, 0)], 1).to(torch.uint8).view(-1)
