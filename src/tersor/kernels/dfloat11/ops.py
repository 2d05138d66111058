"""torch.ops.tersor.dfloat11_decode: the buffers of a DFloat11 checkpoint to bfloat16 weights.

    dfloat11_decode(luts, encoded_exponent, sign_mantissa, output_positions, gaps) -> Tensor [n]

The arguments are a module's buffers as they are stored (`layout.py`); n is the size of `sign_mantissa`, and
`torch.tensor_split` by `split_positions` gives the matrices. Sizes that do not fit raise WrongShape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.dfloat11 import device, reference
from tersor.kernels.dfloat11.layout import Buffers
from tersor.kernels.ops import library

library.define(  # type: ignore[no-untyped-call]
    "dfloat11_decode(Tensor luts, Tensor encoded_exponent, Tensor sign_mantissa, Tensor output_positions, "
    "Tensor gaps) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def decode_on_cpu(*arrays: Tensor) -> Tensor:
    """By the NumPy reference."""
    buffers = Buffers(*(array.contiguous() for array in arrays))
    buffers.check()
    positions = buffers.output_positions.numpy().view("<u4")
    bits = reference.decode(
        buffers.luts.numpy(),
        buffers.encoded_exponent.numpy(),
        buffers.sign_mantissa.numpy(),
        positions,
        buffers.gaps.numpy(),
    )
    return torch.from_numpy(bits).view(torch.bfloat16)


def decode_on_cuda(*arrays: Tensor) -> Tensor:
    """By the kernel."""
    buffers = Buffers(*(array.contiguous() for array in arrays))
    return device.decode(buffers, buffers.sign_mantissa.new_empty(buffers.weights, dtype=torch.bfloat16))


def _fake(
    luts: Tensor, encoded_exponent: Tensor, sign_mantissa: Tensor, output_positions: Tensor, gaps: Tensor
) -> Tensor:
    return sign_mantissa.new_empty((sign_mantissa.numel(),), dtype=torch.bfloat16)


library.impl("dfloat11_decode", decode_on_cpu, "CPU")  # type: ignore[no-untyped-call]
library.impl("dfloat11_decode", decode_on_cuda, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake(f"{library.ns}::dfloat11_decode", _fake, lib=library)
