"""What a manifest entry says of a quantised tensor beyond dtype and shape: how its stored arrays are to be read.

Each codec of FORMAT.md section 6 has a dataclass here whose fields are the members of the entry's
`parameters` object, no more and no less. Together with the shape they fix every stored array's size, so
that `inspect` splits bits, and a loader prepares memory, from headers alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from tersor.format.constants import CODEC_INTEGERS, CODEC_SPQR
from tersor.format.errors import BadParameters

_SHA256 = re.compile(r"[0-9a-f]{64}")

MIN_WIDTH, MAX_WIDTH = 2, 8
MAX_STAT_BITS = 8
MIN_UNIT, MAX_UNIT = -149, 127  # float32's powers of two


@dataclass(frozen=True)
class SpqrParameters:
    """How a tensor of codec `spqr` is stored."""

    bits: int  # b, of a code
    group: int  # g: columns that share a scale and a zero
    rows: int  # h: rows that share a second-level grid
    stat_bits: int  # of a scale code and of a zero code; 0: statistics are stored directly
    unit: int  # the weights are in units of 2^unit
    order: bool  # whether the columns' order is stored
    outliers: int
    stored: str  # SHA-256 of the stored arrays

    def groups(self, columns: int) -> int:
        """Groups in a row."""
        return -(-columns // self.group)

    def runs(self, rows: int) -> int:
        """Second-level grids in a column of groups."""
        return -(-rows // self.rows)


@dataclass(frozen=True)
class IntegersParameters:
    """How a tensor of codec `integers` is stored."""

    stored: str  # SHA-256 of the stored arrays


Parameters = SpqrParameters | IntegersParameters

KINDS: Mapping[str, type[SpqrParameters] | type[IntegersParameters]] = {
    CODEC_SPQR: SpqrParameters,
    CODEC_INTEGERS: IntegersParameters,
}


def dump_parameters(parameters: Parameters) -> dict[str, object]:
    """The JSON object."""
    return asdict(parameters)


def parse_parameters(codec: str, value: object, shape: tuple[int, ...], where: str) -> Parameters:
    """The parameters of a tensor of this codec and shape; `where` names it in errors."""
    kind = KINDS[codec]
    wanted = {field.name: field.type for field in fields(kind)}
    if not isinstance(value, dict) or set(value) != set(wanted):
        raise BadParameters(f"{where}: codec {codec!r} needs the parameters {', '.join(wanted)}, no others")
    types = {"int": int, "bool": bool, "str": str}
    for name, text in wanted.items():
        if type(value[name]) is not types[str(text)]:
            raise BadParameters(f"{where}: parameter {name!r} must be of type {text}, it is {value[name]!r}")
    if not _SHA256.fullmatch(value["stored"]):
        raise BadParameters(f"{where}: parameter 'stored' is not 64 hexadecimal digits")
    if len(shape) != 2 or 0 in shape:
        raise BadParameters(f"{where}: codec {codec!r} holds matrices with weights, not shape {list(shape)}")
    parameters = kind(**value)
    if isinstance(parameters, SpqrParameters):
        _check(parameters, shape[0], shape[1], where)
    return parameters


def _check(p: SpqrParameters, rows: int, columns: int, where: str) -> None:
    allowed = {
        "bits": (MIN_WIDTH, MAX_WIDTH),
        "group": (1, columns),
        "rows": (1, 2**31 - 1 if p.stat_bits else 1),
        "stat_bits": (0, MAX_STAT_BITS),
        "unit": (MIN_UNIT, MAX_UNIT),
        "outliers": (0, rows * columns),
    }
    for name, (low, high) in allowed.items():
        if not low <= getattr(p, name) <= high:
            raise BadParameters(
                f"{where}: parameter {name!r} is {getattr(p, name)}, it must be {low} to {high}"
            )
