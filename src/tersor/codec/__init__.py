"""bytes <-> values: the huffman codec, by numba where it is installed, else by NumPy.

`encode`, `decode`, `decode_rows` and `check_canonical` have one signature and one result in
both; `tersor.codec.reference` is the truth, `tersor.codec.fast` only faster.
"""

from __future__ import annotations

from importlib.util import find_spec

from tersor.codec.packed import Packed

if find_spec("numba") is not None:
    from tersor.codec.fast import check_canonical, decode, decode_rows, encode, histogram

    BACKEND = "numba"
else:
    from tersor.codec.reference import check_canonical, decode, decode_rows, encode, histogram

    BACKEND = "numpy"

__all__ = ["BACKEND", "Packed", "check_canonical", "decode", "decode_rows", "encode", "histogram"]
