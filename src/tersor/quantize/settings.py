"""What to quantise to: one set of numbers that serves rounding, GPTQ and SpQR alike.

The three methods are one algorithm with parts switched off, so they share one core and can be
compared fairly:

====================  ========  ==========  ===========  ==========
method                feedback  statistics  outliers     act-order
====================  ========  ==========  ===========  ==========
RTN                   no        16-bit      none         none
GPTQ                  yes       16-bit      none         groups
SpQR                  yes       two levels  tau < inf    groups
====================  ========  ==========  ===========  ==========

The names follow SpQR (arXiv 2306.03078), whose g and h are easily swapped: `group` (g) is a run of
consecutive *inputs* of one row, `rows` (h) a run of consecutive *output rows* at the same group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from tersor.format.errors import UsageError

MIN_BITS, MAX_BITS = 2, 8
BLOCK = 128  # columns between two lazy updates of the remaining matrix; does not change the result

ActOrder = Literal["none", "columns", "groups"]


@dataclass(frozen=True)
class Settings:
    """How one matrix is quantised. Raises `UsageError` for numbers outside their range."""

    bits: int = 4
    """b: bits of a code, 2 to 8."""
    group: int | None = 16
    """g: weights of one row that share a scale and a zero; None is the whole row."""
    rows: int = 16
    """h: output rows whose scales (and zeros) of one group share a second-level grid."""
    stat_bits: int = 3
    """Bits of a scale code and of a zero code (the paper's b_s = b_z); 0 stores both as 16-bit floats."""
    tau: float = math.inf
    """Outlier threshold, in units of the layer's mean squared sensitivity; inf keeps no outliers."""
    percdamp: float = 0.1
    """Damping of the Hessian, in units of its mean diagonal; 0.1 was best on held-out text (dev/LOG.md)."""
    act_order: ActOrder = "groups"
    """Order of quantisation: as stored, single columns by falling Hessian, or whole groups by it.

    Columns need their order stored and every product to gather its input; groups stay in their places.
    """
    feedback: bool = True
    """Push each column's rounding error into the columns still to come (GPTQ)."""

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UsageError(f"bits must be {MIN_BITS} to {MAX_BITS}, not {self.bits}")
        if self.group is not None and self.group < 1:
            raise UsageError(f"group must be at least 1 (or None for whole rows), not {self.group}")
        if self.rows < 1:
            raise UsageError(f"rows must be at least 1, not {self.rows}")
        if not 0 <= self.stat_bits <= 8:
            raise UsageError(f"stat_bits must be 0 (16-bit floats) to 8, not {self.stat_bits}")
        if not self.tau > 0:
            raise UsageError(f"tau must be positive, not {self.tau}")
        if not 0 <= self.percdamp < math.inf:
            raise UsageError(f"percdamp must be finite and not negative, not {self.percdamp}")
        if self.act_order not in ("none", "columns", "groups"):
            raise UsageError(f"act_order must be none, columns or groups, not {self.act_order!r}")

    def group_size(self, columns: int) -> int:
        """The group size in a matrix of `columns` inputs."""
        return columns if self.group is None else min(self.group, columns)

    @property
    def levels(self) -> int:
        """The largest code, 2^b - 1."""
        return (1 << self.bits) - 1

    @property
    def run(self) -> int:
        """Rows per second-level grid; 1 when statistics are stored directly."""
        return self.rows if self.stat_bits else 1


def rtn(bits: int, group: int | None = None) -> Settings:
    """Round to nearest: no Hessian, no feedback; 16-bit scale and zero per group."""
    return Settings(bits, group, rows=1, stat_bits=0, act_order="none", feedback=False)


def gptq(bits: int, group: int | None = None) -> Settings:
    """GPTQ (arXiv 2210.17323) with act-order."""
    return Settings(bits, group, rows=1, stat_bits=0)


# SpQR with the paper's groups of 16 x 16 and two-level statistics of 3 bits, the defaults above.
PRESETS = {
    "4-bit": Settings(4, tau=0.2),  # the paper's near-lossless setting, about 4.6 bits per weight
    "3-bit": Settings(3, tau=0.45),  # its setting below 4 bits, about 3.9
}


def preset(name: str, **changes: object) -> Settings:
    """The named preset with some fields changed."""
    try:
        found = PRESETS[name]
    except KeyError:
        raise UsageError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}") from None
    return replace(found, **changes)  # type: ignore[arg-type]
