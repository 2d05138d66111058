"""Decode DFloat11's buffers on the GPU: `cuda/dfloat11_decode.cu`, how it is built and launched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from tersor.format.constants import MAX_CODE_BITS
from tersor.kernels.compiler import Program
from tersor.kernels.dfloat11.layout import BLOCK_BYTES, GAP_BITS, WINDOW_BYTES, Buffers
from tersor.kernels.launcher import Kernel, Launch, multiprocessors, shared_limit

_CHUNK_BYTES = 32  # of the stream, for a lane
_LANES = BLOCK_BYTES // _CHUNK_BYTES  # of a group, which decodes a block
_ROW_SYMBOLS = 160  # of a lane, before a block is decoded the slow way; 97 are usual
_FLAT_SYMBOLS = 16384  # of a block; 12,000 are usual
_TABLES_SHARED = (8 << MAX_CODE_BITS) + 18 * 256
_GROUP_SHARED = _LANES * (_ROW_SYMBOLS + 12) + _FLAT_SYMBOLS + 16 + _LANES * (_CHUNK_BYTES + 12) + 32
_MOST_GROUPS = 4
_ALIGN = 16  # of the addresses that are read 16 bytes at a time


@dataclass(frozen=True)
class Decoding:
    """How the kernel is built: `groups` of four warps share a multiprocessor and its table."""

    groups: int

    @classmethod
    def fitting(cls, shared: int) -> Decoding:
        """As many groups as fit this much shared memory."""
        return cls(max(1, min(_MOST_GROUPS, (shared - _TABLES_SHARED) // _GROUP_SHARED)))

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return _TABLES_SHARED + self.groups * _GROUP_SHARED

    @property
    def program(self) -> Program:
        """The program of this build."""
        constants = (
            ("GROUPS", self.groups),
            ("BLOCK_BYTES", BLOCK_BYTES),
            ("WINDOW_BYTES", WINDOW_BYTES),
            ("GAP_BITS", GAP_BITS),
            ("CHUNK_BYTES", _CHUNK_BYTES),
            ("ROW_SYMBOLS", _ROW_SYMBOLS),
            ("FLAT_SYMBOLS", _FLAT_SYMBOLS),
            ("SHARED", self.shared),
        )
        return Program("dfloat11_decode.cu", "dfloat11_decode", constants)


@cache
def _kernel(decoding: Decoding) -> Kernel:
    return Kernel(decoding.program, decoding.shared)


def decode(buffers: Buffers, out: torch.Tensor, decoding: Decoding | None = None) -> torch.Tensor:
    """Decode to `out`, a contiguous bfloat16 CUDA tensor of n elements; returns it. WrongShape if sizes do not fit."""
    buffers.check()
    if not buffers.weights:
        return out
    decoding = decoding or Decoding.fitting(shared_limit(out.device))
    blocks = min(multiprocessors(out.device), buffers.blocks)
    _kernel(decoding)(
        Launch((blocks, 1), _LANES * decoding.groups, decoding.shared, overlap=True),
        out.device,
        buffers.luts,
        _aligned(buffers.encoded_exponent),
        _aligned(buffers.sign_mantissa),
        _aligned(buffers.output_positions),
        buffers.gaps,
        out,
        buffers.luts.shape[0],
        buffers.encoded_exponent.numel(),
        buffers.weights,
        buffers.output_positions.nbytes // 4,
    )
    return out


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one that begins in the middle of another."""
    return tensor if tensor.data_ptr() % _ALIGN == 0 else tensor.clone()
