"""The decoding kernel of the official DFloat11 package, from its PTX, launched as their `get_hook` launches it.

`decode.ptx` lies in that package (pip download --no-deps dfloat11). A kernel is first prepared for buffers: their
loader, too, works out once per group how much shared memory a launch takes. The launch that comes of it asks the
host for nothing and goes to the current stream, so a CUDA graph can capture it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from cuda.bindings import driver

from tersor.kernels.dfloat11.layout import BLOCK_WINDOWS, Buffers

Launch = Callable[[torch.Tensor], object]  # decodes to a contiguous bfloat16 tensor
Prepare = Callable[[Buffers], Launch]


def official(path: Path) -> Prepare:
    """Their kernel, on the current device."""
    torch.cuda.current_stream()
    error, module = driver.cuModuleLoadData(path.read_bytes().rstrip(b"\0") + b"\0")
    assert error == driver.CUresult.CUDA_SUCCESS, error
    error, function = driver.cuModuleGetFunction(module, b"decode")
    assert error == driver.CUresult.CUDA_SUCCESS, error

    def prepare(buffers: Buffers) -> Launch:
        positions = buffers.output_positions.cpu().view(torch.uint32).long()
        shared = BLOCK_WINDOWS * 4 + 4 + 2 * int(positions.diff().max())
        numbers = (buffers.luts.shape[0], buffers.encoded_exponent.numel(), buffers.weights)

        def launch(out: torch.Tensor) -> None:
            pointers = (*vars(buffers).values(), out)
            values = (*(tensor.data_ptr() for tensor in pointers), *numbers)
            types = (ctypes.c_void_p,) * len(pointers) + (ctypes.c_int,) * len(numbers)
            stream = torch.cuda.current_stream().cuda_stream
            (error,) = driver.cuLaunchKernel(
                function, buffers.blocks, 1, 1, BLOCK_WINDOWS, 1, 1, shared, stream, (values, types), 0
            )
            assert error == driver.CUresult.CUDA_SUCCESS, error

        return launch

    return prepare
