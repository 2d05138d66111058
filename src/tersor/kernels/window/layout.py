"""The `fast` layout: lossless bfloat16 at about 11.4 bits per weight that a product can read at full speed.

Entropy coding is the smallest form of a weight but a slow one to multiply from: every code's place
depends on all codes before it. Here every weight sits at a fixed place in 11 bits: a byte of sign and
mantissa, and a 3-bit code, its exponent minus a *base*. Eight neighbouring exponents hold 98 to 99 % of
a trained row; the rest are *exceptions*: their place holds the filler +2^base, and a
list gives their true values.

**Blocks.** A matrix is cut into strips of 16 rows, a strip into blocks of 16 x 64, column-padded with
fillers. A block is 1408 bytes, in the order in which `mma.m16n8k16` wants its A operand, so that
decoding a pair of weights is a shift, a PRMT and two LOP3. Lane (g, t) = (lane / 4, lane % 4) owns rows
g and g + 8 and columns 16 t to 16 t + 15; step i = 0..3 multiplies its columns 16 t + 4 i + {0, 1, 2, 3}:

    register  row    columns           A[g][k], B[k] are permuted alike, so the k of the instruction need
    r = 0     g      4 i + {0, 1}      not be neighbours in memory: a lane reads 16 consecutive
        1     g + 8  4 i + {0, 1}      activations, two 16-byte loads for four steps.
        2     g      4 i + {2, 3}
        3     g + 8  4 i + {2, 3}

    bytes      what
    0          [2][32 lanes][16]  sign (bit 7) and mantissa; a lane's 32 bytes in order of (i, r, pair)
    1024       [32 lanes][8]      code words 0 and 1
    1280       [32 lanes][4]      code word 2

Pair j = 4 i + r of codes (first of the pair in the low, second in the high half of a word) is in word
j / 5 at bit SHIFTS[j % 5] of each half; the three bits of pair 15 are the bit 0 of the three words.

**Records.** Each *segment* (a strip's 16 rows x 512 columns) has a record of 16-byte units: the bases of its
rows, and its exceptions, sorted by row and column. Record k = strip * segments + segment begins at unit
`places[k]` (int32) of `records`:

    bytes      what
    0          [16] uint16  how many exceptions there are in rows 0..r
    32         [16] uint8   the bases of the rows
    48         [n] uint32   column within the segment (bits 0 to 8), row within the strip (bits 9 to 12), and
                            the bfloat16 itself (bits 16 to 31)

So the warp that multiplies a segment gets all it needs besides the blocks in one piece, for which it can ask
long before. The base of a row in a segment is the smallest one that leaves the fewest exceptions.

Rejected: a base per matrix (0.3 % more exceptions); lists per row, found through pointers (three dependent
trips to a busy memory: 0.75 of cuBLAS's speed at 8 tokens, dev/LOG.md); exceptions left to warps of their own (too few
of them to hide their latency: 1.0 of cuBLAS's speed at 8 tokens); exceptions of 24 or 26 bits (0.07 bits per
weight less, but five instructions more each, and instructions are what is short); one-hot matrix products
for exceptions (slower); exceptions patched into the weights before the product (they would have to pass
through shared memory twice).
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.format.constants import TILE_ROWS

STRIP_ROWS = TILE_ROWS
BLOCK_COLS = 64
BLOCK_BYTES = STRIP_ROWS * BLOCK_COLS * 11 // 8  # 1408, a multiple of the 128 bytes of a cache line
CODES_AT = STRIP_ROWS * BLOCK_COLS  # byte in a block at which the code words begin
LAST_CODES_AT = CODES_AT + 32 * 8
WINDOW = 8  # exponents that a 3-bit code tells apart
SHIFTS = (7, 4, 1, 10, 13)  # bit of the pairs 5 w + 0..4 in word w; 7 is a bfloat16's lowest exponent bit
MIN_BASE, MAX_BASE = 1, 240  # exponent 0 has no implicit one; 2^base must stay a float32 in the epilogue
BASES_AT = 2 * STRIP_ROWS  # bytes; before them, how many exceptions there are per row, running
RECORD_HEAD = BASES_AT + STRIP_ROWS
EXCEPTION_BYTES = 4
ROW_SHIFT = 9  # bit of an exception's row; below it the column

# The order of every sum, in columns: a *segment* is one chain of matrix instructions, to which its
# exceptions are added; two segments add up to a *span*, spans to the row. It does not depend on how many
# tokens there are or how the work is dealt out, so results do not either.
SEGMENT_COLS = 512
SPAN_COLS = 1024


@dataclass(frozen=True)
class Geometry:
    """What follows from a matrix's size alone: `rows` out features, `cols` in features."""

    rows: int
    cols: int

    @property
    def strips(self) -> int:
        """Strips of 16 rows."""
        return -(-self.rows // STRIP_ROWS)

    @property
    def blocks(self) -> int:
        """Blocks of 64 columns in a strip."""
        return -(-self.cols // BLOCK_COLS)

    @property
    def padded_cols(self) -> int:
        """Columns of the activations the kernel reads: `cols` up to a multiple of 64."""
        return self.blocks * BLOCK_COLS

    @property
    def spans(self) -> int:
        """Spans of 1024 columns in a row."""
        return -(-self.cols // SPAN_COLS)

    @property
    def segments(self) -> int:
        """Segments of 512 columns in a row."""
        return -(-self.cols // SEGMENT_COLS)

    @property
    def records(self) -> int:
        """Records, one per segment."""
        return self.strips * self.segments

    @property
    def block_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.strips * self.blocks * BLOCK_BYTES

    def bits_per_weight(self, record_bytes: int) -> float:
        """Everything counted: blocks, places and this many bytes of records."""
        nbytes = self.block_bytes + 4 * (self.records + 1) + record_bytes
        return 8 * nbytes / (self.rows * self.cols)


MACROS = (
    ("BLOCK_COLS", BLOCK_COLS),
    ("BLOCK_BYTES", BLOCK_BYTES),
    ("CODES_AT", CODES_AT),
    ("LAST_CODES_AT", LAST_CODES_AT),
    ("WINDOW", WINDOW),
    ("MIN_BASE", MIN_BASE),
    ("MAX_BASE", MAX_BASE),
    ("BASES_AT", BASES_AT),
    ("RECORD_HEAD", RECORD_HEAD),
    ("EXCEPTION_BYTES", EXCEPTION_BYTES),
    ("ROW_SHIFT", ROW_SHIFT),
    ("SEGMENT_COLS", SEGMENT_COLS),
    ("SPAN_COLS", SPAN_COLS),
)  # the layout's numbers, as the CUDA text knows them
