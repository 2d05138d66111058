"""Exact arithmetic to test floating-point code against: fractions, and rounding them once."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def nearest(x: Fraction, digits: int, lowest: int) -> Fraction:
    """`x` rounded to `digits` significant bits, ties to even; no bit lies below 2^lowest."""
    if x == 0:
        return x
    top = abs(x.numerator).bit_length() - x.denominator.bit_length()
    top -= abs(x) < Fraction(2) ** top  # 2^top <= |x| < 2^(top + 1)
    unit = Fraction(2) ** max(top - digits + 1, lowest)
    return round(x / unit) * unit  # Python rounds halves to even


def binary16(x: Fraction) -> Fraction:
    """`x` as a binary16; infinity is not looked for."""
    return nearest(x, 11, -24)


def bfloat16(x: Fraction) -> Fraction:
    """`x` as a bfloat16."""
    return nearest(x, 8, -133)


def fraction(x: float | np.floating) -> Fraction:
    """A finite floating-point number, exactly."""
    return Fraction(float(x))
