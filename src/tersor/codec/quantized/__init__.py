"""Quantised matrices: what is stored for them, and the weights they stand for.

    matrix      fixed-width codes on two-level grids, with outliers (codec `spqr`), and their exact size
    integers    entropy-coded integers with a step per column (codec `integers`)
    rounding    rounding to the types that are stored
    arithmetic  from codes and statistics to weights, each number rounded once; arithmetic_torch the
                same, and fast its inner loop in numba
    dequantize  the weights, in NumPy: the truth; dequantize_torch the same bit for bit
    packing     codes of b bits in rows of bytes; packing_torch takes them out again
    parts       either kind as the arrays that FORMAT.md section 5 stores, and back

How good codes are found is `tersor.quantize`'s business; nothing here knows of it.
"""
