"""Split elements into coded symbols and raw bytes, and join them again (FORMAT.md section 3).

In trained weights the sign and mantissa are noise, the exponent is not: a bfloat16 exponent
carries about 2.6 of its 8 bits. So one byte per element, the *symbol*, is entropy coded and
the rest stored as it is. For float16 and float8 the symbol is simply the high byte, or the
byte: its sign and mantissa bits cost what they weigh, and everything stays on byte borders.

`split` and `join` are exact inverses on every bit pattern; NaN payloads, -0 and denormals are
ordinary values here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.format.dtypes import RAW_BYTES
from tersor.format.errors import UnknownDtype

U8 = NDArray[np.uint8]

_BITS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8}


def split(data: U8, dtype: str) -> tuple[U8, U8]:
    """Symbols (n,) and raw planes (raw bytes, n) of the n elements whose bytes are `data`."""
    if dtype not in _BITS:
        raise UnknownDtype(f"codec 'huffman' cannot hold dtype {dtype!r}; it holds {', '.join(_BITS)}")
    v = data.view(_BITS[dtype])
    if dtype == "BF16":
        symbols, raw = v >> 7 & 0xFF, v >> 8 & 0x80 | v & 0x7F
    elif dtype == "F32":
        symbols, raw = v >> 23 & 0xFF, v >> 8 & 0x800000 | v & 0x7FFFFF
    elif dtype == "F16":
        symbols, raw = v >> 8, v & 0xFF
    else:
        symbols, raw = v, v
    planes = [(raw >> 8 * j & 0xFF).astype(np.uint8) for j in range(RAW_BYTES[dtype])]
    return symbols.astype(np.uint8), np.array(planes, np.uint8).reshape(len(planes), v.size)


def join(symbols: U8, planes: U8, dtype: str) -> U8:
    """The bytes of the elements with these symbols (n,) and raw planes (raw bytes, n)."""
    bits = _BITS[dtype]
    s = symbols.astype(bits)
    raw = np.zeros(s.shape, bits)
    for j, plane in enumerate(planes):
        raw |= plane.astype(bits) << bits(8 * j)
    if dtype == "BF16":
        v = (raw & 0x80) << 8 | s << 7 | raw & 0x7F
    elif dtype == "F32":
        v = (raw & 0x800000) << 8 | s << 23 | raw & 0x7FFFFF
    elif dtype == "F16":
        v = s << 8 | raw
    else:
        v = s
    return v.astype(bits).view(np.uint8)
