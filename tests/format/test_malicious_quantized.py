"""Files of quantised tensors that somebody broke on purpose, hashes and all: the rule is named, nothing made of them.

The golden files are broken in their data. A careless hand leaves `stored`, the hash of the arrays, as it
was; a malicious one writes the right one, and then the rules of FORMAT.md section 6 have to find it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crafting import edit_header, edit_tensor, read_tensors
from tersor.format import errors
from tersor.format.layout import stored_tensors
from tersor.format.manifest import parse_manifest
from tersor.format.shard import read_shard
from tersor.pipeline.decompress import decompress
from tersor.pipeline.verify import verify

GOLDEN = Path(__file__).parents[1] / "golden"
Edit = Callable[[bytearray], Any]


def u16(place: int, value: int) -> Edit:
    """Another number at a place, counted from the end if negative."""

    def edit(data: bytearray) -> None:
        at = 2 * place if place >= 0 else len(data) + 2 * place
        data[at : at + 2] = value.to_bytes(2, "little")

    return edit


def first_twice(data: bytearray) -> None:
    data[2:4] = data[0:2]


def first_two_exchanged(data: bytearray) -> None:
    data[0:4] = bytes(data[2:4] + data[0:2])


def one_more(data: bytearray) -> None:
    data[0] += 1


BROKEN: dict[str, tuple[str, str, Edit, str]] = {
    "a column twice": ("spqr", "all_order", first_twice, "BadOrder"),
    "a column that is not there": ("spqr", "all_order", u16(7, 300), "BadOrder"),
    "an outlier too many": ("spqr", "all_counts", one_more, "BadOutliers"),
    "outliers by the thousand": ("spqr", "all_counts", u16(0, 0xFFFF), "BadOutliers"),
    "an outlier outside its tile": ("spqr", "all_places", u16(-1, 0x1000), "BadOutliers"),
    "an outlier outside the matrix": ("spqr", "all_places", u16(-1, 0x0FFF), "BadOutliers"),
    "two outliers in one place": ("spqr", "all_places", first_twice, "BadOutliers"),
    "outliers out of order": ("spqr", "all_places", first_two_exchanged, "BadOutliers"),
    "an outlier without end": ("spqr", "all_deltas", u16(3, 0x7C00), "BadOutliers"),
    "an outlier that is no number": ("spqr", "all_deltas", u16(3, 0xFE00), "BadOutliers"),
    "a scale without end": ("spqr", "all_stats", u16(1, 0x7C00), "BadStats"),
    "a zero that is no number": ("spqr", "least_stats", u16(1, 0x7E00), "BadStats"),
    "a step that leads beyond all numbers": ("spqr", "all_stats", u16(0, 0x7BFF), "BadStats"),
    "a column of nothing": ("integers", "all_steps", u16(0, 0), "BadSteps"),
    "a column without end": ("integers", "all_steps", u16(299, 0x7F80), "BadSteps"),
    "offsets that leave the data": ("integers", "all_offsets", u16(-2, 0xFFFF), "BadOffsets"),
    "a book of nothing": (
        "integers",
        "all_book",
        lambda b: b.__setitem__(slice(None), bytes(256)),
        "BadBook",
    ),
    "bits behind the last byte": ("integers", "all_tiles", u16(-1, 1), "NotCanonical"),
    "bits behind the last code": (
        "spqr",
        "least_codes",
        lambda b: b.__setitem__(-1, 0xF0 | b[-1]),
        "NotCanonical",
    ),
}
EVERY = pytest.mark.parametrize(("codec", "part", "edit", "error"), BROKEN.values(), ids=BROKEN.keys())


def reseal(path: Path, tensor: str) -> None:
    """Write the right hash of the stored arrays, as whoever broke them on purpose would."""
    parts = read_tensors(path)
    entry = parse_manifest(read_shard(path).metadata)[tensor]
    digest = hashlib.sha256()
    for declared in stored_tensors(tensor, entry):
        if declared.name != tensor:  # the guard
            digest.update(parts[declared.name].data)

    def edit(header: dict[str, Any]) -> None:
        document = json.loads(header["__metadata__"]["tersor"])
        document["tensors"][tensor]["parameters"]["stored"] = digest.hexdigest()
        header["__metadata__"]["tersor"] = json.dumps(document)

    edit_header(path, edit)


@pytest.fixture
def file(codec: str, tmp_path: Path) -> Path:
    return Path(shutil.copy(GOLDEN / f"{codec}.safetensors", tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("codec", ["spqr", "integers"])
def test_sealing_a_sound_one_anew_changes_nothing(codec: str, file: Path) -> None:
    for tensor in ("all", "least"):
        reseal(file, tensor)
    assert verify(file).ok


@EVERY
def test_a_careless_hand_is_found_by_the_hash(
    codec: str, part: str, edit: Edit, error: str, file: Path
) -> None:
    edit_tensor(file, part, edit)
    assert [f.error for f in verify(file).failures] == ["HashMismatch"]


@EVERY
def test_a_malicious_hand_is_found_by_the_rule(
    codec: str, part: str, edit: Edit, error: str, file: Path, tmp_path: Path
) -> None:
    edit_tensor(file, part, edit)
    tensor = part.split("_")[0]
    reseal(file, tensor)
    found = verify(file).failures
    assert [(f.error, f.tensor) for f in found] == [(error, tensor)]
    assert "damaged" in found[0].message
    if error != "NotCanonical":  # the weights are right all the same
        with pytest.raises(getattr(errors, error)) as raised:
            decompress(file, tmp_path / "out.safetensors")
        assert raised.value.exit_status in (3, 4)
        assert not (tmp_path / "out.safetensors").exists()
