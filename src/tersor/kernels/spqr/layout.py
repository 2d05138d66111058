"""The `spqr` layout: weights of codec `spqr` (FORMAT.md section 6), placed so that a product reads them as they are.

At rest codes are rows of bits, statistics lie apart and every second one needs a shift across bytes: right for a
file, hopeless for a kernel. Here everything that 16 x 128 weights need lies in one *stage* (the skeleton is
`fused.layout`'s), in the order in which the lanes of a warp want it. Lane (g, t) = (lane / 4, lane % 4) owns rows
g and g + 8 and the 32 columns from 32 t on, so whole groups: a group's statistics are worked out once, by the one
lane that needs them. (Four lanes that share a group's columns, as the instruction suggests, would each do that
again: a prototype spent half its time there.) *Half* h of a stage is its columns 32 t + 16 h + {0..15}: four steps of
`mma.m16n8k16`, step i with columns 4 i + {0, 1, 2, 3} of those sixteen. A[g][k] and B[k] are permuted alike, so
the k of the instruction need not be neighbours in memory.

**Codes.** Planes of 1 to 4 bits: one for widths 2 to 4, for 5 to 8 one of the low four bits and one of the rest.
In a plane of f bits the 32 codes of a lane and half are f words of 32 bits: 16 *pairs* of columns 2 n, 2 n + 1
(n = 0..7) of rows rho = 0 (g) and 1 (g + 8), the first of a pair in the low, the second in the high 16 bits,

    f = 1, 2, 4    at bit f k of its half word, k = 0, 1, ...: rho = k % 2, n = word * 8 / f + k / 2
    f = 3          bits 0, 3, 6, 9 of word w: (rho, n) = (0, 2w), (1, 2w), (0, 2w + 1), (1, 2w + 1); bit 12 of words
                   0, 1, 2: (0, 6), (1, 6), (0, 7); bit 15 of words 0, 1, 2 is bit 0, 1, 2 of (1, 7)

so that a shift by a multiple of 2 f and a mask leave row 0's codes at bit 0 and row 1's at bit f. There they need
no conversion: the integer v in the low eight bits of a bfloat16 *is* the number v * 2^-133 (its subnormals, and
the first binade goes on in the same steps). One packed fused multiply-add,

    base * 2^-22 = (a * 2^(111 - p)) * (code * 2^(p - 133)) + b * 2^-22

makes two weights of two codes at bit p, bit for bit those of FORMAT.md: powers of two change no rounding, and a
binary16's range leaves room for them (a <= 2^16; base is 0 or at least 2^-48).

**Statistics.** LEVELS = 2: a byte per row and group, scale code and zero code * 16, and per group four binary16
for the strip, (scale_min, zero_min, scale_step, zero_step). LEVELS = 1: two binary16 per row and group, (scale,
zero): for direct statistics, and for all that two levels cannot hold here (codes of more than four bits, grids
that end within a strip). GROUP is 16 or 32 columns, with one level also 128; longer groups are repeated.

    bytes of a stage       what
    256 f per plane        [2 f words][32 lanes], in pieces of four words per lane, the last of two if f is odd
    LEVELS = 2, GROUP 32   [32 lanes][rho] bytes; then [4 groups][4] binary16
                      16   [32 lanes][h][rho] bytes; then [8 groups][4] binary16
    LEVELS = 1, GROUP 32   [32 lanes][rho][2] binary16
                      16   [32 lanes][h][rho][2] binary16
                     128   [16 rows][2] binary16

Columns and rows beyond the matrix are zero throughout, which makes weights of zero.

**Outliers** are the skeleton's exceptions, their number a binary16, weight minus base. The
small product adds delta * x in float32; what writes weights to memory adds delta to the base in float32 and rounds,
as FORMAT.md says.

4 bits in groups of 32: 4.375 bits per weight and 0.2 for 0.5 % of outliers. 3 bits in groups of 16: 3.75.

Rejected: raw codes into the matrix instruction and sums rescaled per group (four float32 operations per group,
row and token, and a second product for the zeros: more instructions from two tokens on, and other weights than
those that were evaluated); magic numbers and a subtraction to make codes floating point (twice the
instructions); statistics in an array of their own (a second stream with latencies of its own).
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.format.manifest import TensorEntry
from tersor.format.parameters import SpqrParameters
from tersor.kernels.fused import layout as fused
from tersor.kernels.fused.layout import RUNNING_BYTES, STAGE_COLS, STRIP_ROWS

PLANE_BITS = 4  # of the lowest plane at most
RECORD_HEAD = RUNNING_BYTES
WEIGHT_SHIFT = 22  # operands are weights times 2^-22 in units
MIN_UNIT, MAX_UNIT = -60, 60  # between them no weight leaves bfloat16's normal numbers
CODE_STAT_BITS = 4  # of a statistic code, with two levels


@dataclass(frozen=True)
class Slot:
    """Where pair n of row rho lies in a plane: word, and bit of each half of it."""

    rho: int
    n: int
    word: int
    bit: int


def slots(bits: int) -> tuple[Slot, ...]:
    """All pairs of a plane that lie in one piece, in order of word and bit: 16, of 3 bits 15."""
    if bits == 3:
        last = (Slot(0, 6, 0, 12), Slot(1, 6, 1, 12), Slot(0, 7, 2, 12))
        return tuple(
            slot
            for w in range(3)
            for slot in (*(Slot(k % 2, 2 * w + k // 2, w, 3 * k) for k in range(4)), last[w])
        )
    per_word = 16 // bits
    return tuple(
        Slot(k % 2, w * per_word // 2 + k // 2, w, bits * k) for w in range(bits) for k in range(per_word)
    )


SPREAD = (1, 7)  # (rho, n) of the pair of 3 bits whose bit k is bit 15 of word k


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes of codes of this width, the lowest bits first."""
    return (bits,) if bits <= PLANE_BITS else (PLANE_BITS, bits - PLANE_BITS)


@dataclass(frozen=True)
class Geometry(fused.Geometry):
    """What follows from size and kind: codes of `bits`, groups of `group` columns, `levels` of statistics."""

    bits: int
    group: int
    levels: int

    @property
    def stages(self) -> int:
        """Stages in a strip."""
        return -(-self.cols // STAGE_COLS)

    @property
    def padded_cols(self) -> int:
        """`cols` up to a multiple of 128."""
        return self.stages * STAGE_COLS

    @property
    def groups(self) -> int:
        """Groups in a row of a stage."""
        return STAGE_COLS // self.group

    @property
    def code_bytes(self) -> int:
        """Bytes of a stage's codes."""
        return STRIP_ROWS * STAGE_COLS // 8 * self.bits

    @property
    def grid_bytes(self) -> int:
        """Bytes of what a stage tells of each row's groups."""
        return STRIP_ROWS * self.groups * (1 if self.levels == 2 else 4)

    @property
    def stage_bytes(self) -> int:
        """Codes, the rows' statistics, and the strip's, if there are two levels."""
        return self.code_bytes + self.grid_bytes + (8 * self.groups if self.levels == 2 else 0)

    @property
    def macros(self) -> tuple[tuple[str, int], ...]:
        """The layout's numbers for such a matrix."""
        own = (
            ("LAYOUT", 1),
            ("RECORD_HEAD", RECORD_HEAD),
            ("BITS", self.bits),
            ("GROUP", self.group),
            ("LEVELS", self.levels),
            ("GRIDS_AT", self.code_bytes),
            ("SECOND_AT", self.code_bytes + self.grid_bytes),
            ("STAGE_SIZE", self.stage_bytes),
            ("WEIGHT_SHIFT", WEIGHT_SHIFT),
        )
        return fused.MACROS + own


def held(entry: TensorEntry) -> Geometry | None:
    """How the tensor that a manifest describes is held; None if it is to stay as it is stored."""
    p = entry.parameters
    if not isinstance(p, SpqrParameters) or entry.dtype != "BF16" or not MIN_UNIT <= p.unit <= MAX_UNIT:
        return None
    rows, cols = entry.shape
    return geometry_of(rows, cols, p.bits, p.group, p.rows, p.stat_bits)


def can_hold(entry: TensorEntry) -> bool:
    """Whether the tensor that a manifest describes can be held in this layout."""
    return held(entry) is not None


def geometry_of(rows: int, cols: int, bits: int, group: int, run: int, stat_bits: int) -> Geometry | None:
    """How a matrix stored with these parameters is held; None if its groups do not fit lanes.

    `group`, `run` (the parameter `rows`) and `stat_bits` as in FORMAT.md section 6.
    """
    if group >= cols:
        return Geometry(rows, cols, bits, STAGE_COLS, 1)
    width = next((w for w in (STAGE_COLS, 32, 16) if group % w == 0), None)
    if width is None:
        return None
    strips_share = run % STRIP_ROWS == 0 or run >= rows
    if width < STAGE_COLS and 0 < stat_bits <= CODE_STAT_BITS and strips_share:
        return Geometry(rows, cols, bits, width, 2)
    return Geometry(rows, cols, bits, width, 1)
