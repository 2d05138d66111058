"""Safetensors' dtypes: their sizes, and which of them the huffman codec can hold."""

from __future__ import annotations

from tersor.format.errors import UnknownDtype

# Bits per element, by safetensors' spelling. Sub-byte types exist in the wild and are carried raw.
BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# dtype -> raw bytes per element, those that are stored beside the coded symbol (FORMAT.md section 3).
RAW_BYTES: dict[str, int] = {"BF16": 1, "F16": 1, "F32": 3, "F8_E4M3": 0, "F8_E5M2": 0}

# dtype -> how compiled code tells them apart; two dtypes without raw bytes are coded alike.
KINDS: dict[str, int] = {"BF16": 0, "F16": 1, "F32": 2, "F8_E4M3": 3, "F8_E5M2": 3}

# What can be quantised (FORMAT.md section 6).
QUANTIZABLE = ("BF16", "F16", "F32")


def is_shape(value: object) -> bool:
    """Whether `value`, out of JSON, is a list of sizes with a product below 2^63, as safetensors demands."""
    if not isinstance(value, list):
        return False
    elements = 1
    for size in value:
        if type(size) is not int or size < 0:
            return False
        elements *= size
        if elements >= 2**63:  # at once: the product of a million such sizes would take hours
            return False
    return True


def nbytes(dtype: str, elements: int) -> int:
    """Bytes of `elements` elements of `dtype`; UnknownDtype if there is no such dtype."""
    if dtype not in BITS:
        raise UnknownDtype(
            f"dtype {dtype!r} is not one of safetensors' dtypes; is the file newer than tersor?"
        )
    bits = BITS[dtype] * elements
    if bits % 8:
        raise UnknownDtype(f"{elements} elements of {dtype} do not fill whole bytes")
    return bits // 8


def itemsize(dtype: str) -> int:
    """Bytes of one element of `dtype`, for the dtypes of the huffman codec."""
    return nbytes(dtype, 1)
