"""bytes <-> values: the huffman codec, by numba where it is installed, else by NumPy.

Every function has one signature and one result in both; `tersor.codec.reference` is the truth,
`tersor.codec.fast` only faster (about forty times).
"""

from __future__ import annotations

from importlib.util import find_spec

from tersor.codec.packed import Packed

if find_spec("numba") is not None:
    from tersor.codec.fast import decode, decode_rows, decode_strips, encode, histogram

    BACKEND = "numba"
else:
    from tersor.codec.reference import decode, decode_rows, decode_strips, encode, histogram

    BACKEND = "numpy"

__all__ = ["BACKEND", "Packed", "decode", "decode_rows", "decode_strips", "encode", "histogram"]
