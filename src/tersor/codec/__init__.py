"""bytes <-> values: the huffman codec, by numba where it is installed, else by NumPy.

Every function has one signature and one result in both; `tersor.codec.reference` is the truth,
`tersor.codec.fast` only faster (twenty to eighty times).
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

from tersor.codec.packed import Packed

try:
    from tersor.codec.fast import decode, decode_rows, decode_strips, encode, histogram

    BACKEND = "numba"
except ImportError as error:
    if find_spec("numba") is not None:
        logging.getLogger(__name__).warning(
            "numba is installed and cannot be used (%s); the codec runs on NumPy, twenty to eighty times slower",
            error,
        )
    from tersor.codec.reference import decode, decode_rows, decode_strips, encode, histogram

    BACKEND = "numpy"

__all__ = ["BACKEND", "Packed", "decode", "decode_rows", "decode_strips", "encode", "histogram"]
