"""The `fast` layout: lossless bfloat16 at about 11.4 bits per weight that a product can read at full speed.

Entropy coding is the smallest form of a weight but a slow one to multiply from: every code's place
depends on all codes before it. Here every weight sits at a fixed place in 11 bits: sign,
mantissa, and a 3-bit code, its exponent minus a *base*. Eight neighbouring exponents hold 98 to 99 % of
a trained row; the rest are *exceptions*: their place holds the filler +2^base, and a
list gives their true values.

**Blocks.** Strips of 16 rows are cut into blocks of 16 x 64, column-padded with fillers. A
block is 1408 bytes, in the order in which `mma.m16n8k16` wants its A operand. Lane (g, t) = (lane / 4, lane % 4) owns
rows g and g + 8 and columns 16 t to 16 t + 15; step i = 0..3 multiplies its columns 16 t + 4 i + {0, 1, 2, 3}:

    register  row    columns           A[g][k], B[k] are permuted alike, so the k of the instruction need
    r = 0     g      4 i + {0, 1}      not be neighbours in memory: a lane reads 16 consecutive
        1     g + 8  4 i + {0, 1}      activations, two 16-byte loads for four steps.
        2     g      4 i + {2, 3}
        3     g + 8  4 i + {2, 3}

Its 16 pairs j = 4 i + r of weights are eleven words of 32 bits, the first of a pair in the lower half. Most stand
where a register wants them, so that one LOP3 (mask, exponent 120) makes an operand of a word:

    half of a word     15          14 ... 10           9 8 7     6 ... 0
    word j = 0..10     sign of j   a piece of another  code of j mantissa of j

    pieces, k = 0..4   word 2 k: bits 9 to 5 (code, upper mantissa) of pair 11 + k; word 2 k + 1: its bits 4 to 0;
                       bit 14 - k of word 10: its sign

so eleven pairs take one instruction and five take six. (A byte of sign and mantissa beside words of codes, which
was the layout first, took four to five for each, and 64 integer operations per cycle and multiprocessor are what a
Hopper has.)

    bytes      what
    0          [2][32 lanes][16]  words 0 to 3, 4 to 7
    1024       [32 lanes][8]      words 8, 9
    1280       [32 lanes][4]      word 10

**Records** (`fused.layout`) tell after the running counts, from byte 32 on, the bases of the segment's 16 rows as
uint8; an exception's 16 bits are the bfloat16 itself. The base of a row in a segment is the smallest one that leaves
the fewest exceptions. Two blocks side by side are a stage.

Rejected: a base per matrix (0.3 % more exceptions); lists per row, found through pointers (three dependent
trips to a busy memory: 0.75 of cuBLAS's speed at 8 tokens, dev/LOG.md); exceptions left to warps of their own (too few
of them to hide their latency: 1.0 of cuBLAS's speed at 8 tokens); exceptions of 24 or 26 bits (0.07 bits per
weight less, but five instructions more each, and instructions are what is short); one-hot matrix products
for exceptions (slower); exceptions patched into the weights before the product (they would have to pass
through shared memory twice).
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.kernels.fused import layout as fused
from tersor.kernels.fused.layout import (
    RUNNING_BYTES,
    STRIP_ROWS,
)

BLOCK_COLS = 64  # half a stage
BLOCK_BYTES = STRIP_ROWS * BLOCK_COLS * 11 // 8  # 1408, a multiple of the 128 bytes of a cache line
QUADS_AT, PAIR_AT, LAST_AT = (0, 512), 1024, 1280  # bytes in a block: words 0 to 3, 4 to 7; 8, 9; 10
WORDS = 11  # of a lane
PIECE_AT, PIECE_BITS = 10, 5  # what a word holds of another pair
WINDOW = 8  # exponents that a 3-bit code tells apart
MIN_BASE, MAX_BASE = 1, 240  # exponent 0 has no implicit one; 2^base must stay a float32 in the epilogue
BASES_AT = RUNNING_BYTES
RECORD_HEAD = BASES_AT + STRIP_ROWS
STAGE_BYTES = 2 * BLOCK_BYTES


@dataclass(frozen=True)
class Geometry(fused.Geometry):
    """What follows from a matrix's size."""

    @property
    def blocks(self) -> int:
        """Blocks of 64 columns in a strip."""
        return -(-self.cols // BLOCK_COLS)

    @property
    def padded_cols(self) -> int:
        """`cols` up to a multiple of 64."""
        return self.blocks * BLOCK_COLS

    @property
    def stage_bytes(self) -> int:
        """Of two blocks; a row may end with one."""
        return STAGE_BYTES

    @property
    def macros(self) -> tuple[tuple[str, int], ...]:
        """The same for every matrix."""
        return MACROS


MACROS = (
    *fused.MACROS,
    ("LAYOUT", 0),
    ("BLOCK_COLS", BLOCK_COLS),
    ("BLOCK_BYTES", BLOCK_BYTES),
    ("QUADS_AT", QUADS_AT[1]),
    ("PAIR_AT", PAIR_AT),
    ("LAST_AT", LAST_AT),
    ("WORDS", WORDS),
    ("PIECE_AT", PIECE_AT),
    ("PIECE_BITS", PIECE_BITS),
    ("WINDOW", WINDOW),
    ("MIN_BASE", MIN_BASE),
    ("MAX_BASE", MAX_BASE),
    ("BASES_AT", BASES_AT),
    ("RECORD_HEAD", RECORD_HEAD),
)  # the layout's numbers, as the CUDA text knows them
