"""Rounding to the types that are stored, in NumPy.

A quantiser that measures its error against a number which later loses bits on disk measures the
wrong error. So every stored number is rounded to its type before it is used. Second-level numbers
and outliers are binary16; the dequantised weight has the type of the original tensor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tersor.format.errors import UnknownDtype

F16_MAX = float(np.finfo(np.float16).max)

Floats = npt.NDArray[np.floating]
F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]


def to_f16(x: Floats) -> F16:
    """Round to float32, then to binary16 (as torch does); overflow becomes the largest finite number."""
    return np.clip(x, -F16_MAX, F16_MAX).astype(np.float32).astype(np.float16)


def round_bf16(x: F32) -> F32:
    """Round finite float32 to the nearest bfloat16 (ties to even), kept as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def round_weight(x: F32, dtype: str) -> F32:
    """Round float32 to the weight type `dtype` (safetensors spelling), kept as float32."""
    match dtype:
        case "F32":
            return x
        case "F16":
            return to_f16(x).astype(np.float32)
        case "BF16":
            return round_bf16(x)
    raise UnknownDtype(f"weights of dtype {dtype} cannot be quantised; use BF16, F16 or F32")


def to_bytes(x: F32, dtype: str) -> npt.NDArray[np.uint8]:
    """The bytes, 1-D, of values of `dtype` that are held as float32."""
    x = np.ascontiguousarray(x)
    match dtype:
        case "BF16":
            stored: npt.NDArray[np.generic] = (x.view(np.uint32) >> np.uint32(16)).astype("<u2")
        case "F16":
            stored = x.astype("<f2")
        case _:
            stored = x.astype("<f4")
    return stored.reshape(-1).view(np.uint8)
