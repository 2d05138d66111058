"""The skeleton of every layout that a product reads straight from memory.

A matrix is cut into *strips* of 16 rows, what one `mma.m16n8k16` takes. A strip is a row of *stages* of
16 x 128 weights: one contiguous piece each, what a warp copies to its ring at a time, its inside being the
layout's own affair. Four stages are a *segment*. A segment is one warp's work at a time: one chain of matrix
instructions, to whose sums the segment's *exceptions* are added, weights that the stages could not hold. They
come from the segment's *record*: record k = strip * segments + segment begins at unit `places[k]` (int32, of
16 bytes) of `records`,

    bytes          what
    0              [16] uint16  how many exceptions there are in rows 0..r of the segment
    32             what else the layout tells of each row, up to RECORD_HEAD
    RECORD_HEAD    [n] uint32   column within the segment (bits 0 to 8), row within the strip (bits 9 to 12), and a
                                number of 16 bits (bits 16 to 31); sorted by row and column

so the warp that multiplies a segment gets all it needs besides the stages in one piece, for which it can ask
long before.

In the products for few tokens the order of every sum is part of the layout: segments of 512 columns, two of them
added to a *span* of 1024, four spans to a *quad*, quads to the row. It does not depend on how many tokens there are
or how the work is dealt out, so their results do not either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tersor.format.constants import TILE_ROWS

STRIP_ROWS = TILE_ROWS
STAGE_COLS = 128
SEGMENT_COLS = 512
SPAN_COLS = 1024
QUAD_SPANS = 4
RUNNING_BYTES = 2 * STRIP_ROWS  # at the head of a record
EXCEPTION_BYTES = 4
ROW_SHIFT = 9  # bit of an exception's row; below it the column

MACROS = (
    ("SEGMENT_COLS", SEGMENT_COLS),
    ("SPAN_COLS", SPAN_COLS),
    ("QUAD_SPANS", QUAD_SPANS),
    ("ROW_SHIFT", ROW_SHIFT),
)  # the skeleton's numbers, as the CUDA text knows them


@dataclass(frozen=True)
class Geometry(ABC):
    """What follows from a matrix's size alone: `rows` out features, `cols` in features."""

    rows: int
    cols: int

    @property
    @abstractmethod
    def padded_cols(self) -> int:
        """Columns that the strips hold, and of the activations that a kernel reads."""

    @property
    @abstractmethod
    def stage_bytes(self) -> int:
        """Bytes of a stage, a multiple of 16."""

    @property
    @abstractmethod
    def macros(self) -> tuple[tuple[str, int], ...]:
        """The layout's numbers, as the CUDA text knows them, the skeleton's among them."""

    @property
    def strips(self) -> int:
        """Strips of 16 rows."""
        return -(-self.rows // STRIP_ROWS)

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
    def halves(self) -> int:
        """Halves of stages, 64 columns each, in a strip."""
        return self.padded_cols // (STAGE_COLS // 2)

    @property
    def stage_total(self) -> int:
        """Bytes of all stages."""
        return self.strips * self.padded_cols * self.stage_bytes // STAGE_COLS

    def bits_per_weight(self, record_bytes: int) -> float:
        """Everything counted: stages, places and this many bytes of records."""
        nbytes = self.stage_total + 4 * (self.records + 1) + record_bytes
        return 8 * nbytes / (self.rows * self.cols)
