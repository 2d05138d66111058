"""Parameters of quantised tensors: read back, and each rule refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tersor.format.errors import BadManifest, BadParameters, UnknownDtype
from tersor.format.manifest import TensorEntry, dump_manifest, parse_manifest
from tersor.format.parameters import IntegersParameters, SpqrParameters

HASH = "0123456789abcdef" * 4
SPQR = SpqrParameters(bits=3, group=16, rows=16, stat_bits=3, unit=-5, order=True, outliers=12, stored=HASH)
ENTRIES = {
    "a": TensorEntry("spqr", "BF16", (40, 300), HASH, SPQR),
    "b": TensorEntry("integers", "F16", (40, 300), HASH, IntegersParameters(stored=HASH)),
    "c": TensorEntry("raw", "I64", (3,), HASH),
}


def edited(name: str, **members: Any) -> dict[str, str]:
    """The manifest with members of one entry changed; those of its parameters by "parameters.NAME"."""
    document = json.loads(dump_manifest(ENTRIES))
    for path, value in members.items():
        target = document["tensors"][name]
        *outer, last = path.split("__")
        for key in outer:
            target = target[key]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return {"tersor": json.dumps(document)}


def test_written_and_read_back() -> None:
    assert parse_manifest({"tersor": dump_manifest(ENTRIES)}) == ENTRIES


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("parameters__bits", 1), ("parameters__bits", 9), ("parameters__bits", True), ("parameters__bits", 3.0),
        ("parameters__group", 0), ("parameters__group", 301), ("parameters__rows", 0),
        ("parameters__stat_bits", 9), ("parameters__stat_bits", -1), ("parameters__stat_bits", 0),
        ("parameters__unit", 128), ("parameters__unit", -150), ("parameters__order", 1),
        ("parameters__outliers", -1), ("parameters__outliers", 12001), ("parameters__stored", "0"),
        ("parameters__stored", 7), ("parameters__more", 1), ("parameters__bits", None), ("parameters", []),
        ("shape", [40]), ("shape", [2, 20, 300]), ("shape", [0, 300]),
    ],
)  # fmt: skip
def test_refused_by_name(member: str, value: Any) -> None:
    with pytest.raises(BadParameters, match=r"^file: tensor 'a': "):
        parse_manifest(edited("a", **{member: value}), "file")


def test_parameters_belong_to_quantised_tensors_only() -> None:
    for name, value in (("a", None), ("b", None), ("c", {"stored": HASH})):
        with pytest.raises(BadManifest):
            parse_manifest(edited(name, parameters=value))


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "F64"])
def test_other_dtypes_are_refused(name: str, dtype: str) -> None:
    with pytest.raises(UnknownDtype):
        parse_manifest(edited(name, dtype=dtype))
