"""Safetensors headers: read as the safetensors library writes them, written so that it reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from crafting import Tensor, file_bytes
from tersor.format.errors import BadHeader, BadRange, TersorError
from tersor.format.shard import Extent, dump_header, parse_header, read_shard


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {
        "ünï/码": np.arange(6, dtype=np.int64).reshape(2, 3),
        "empty": np.zeros((0, 5), np.float32),
        "scalar": np.array(True),
        "w": np.arange(35, dtype=np.float16).reshape(5, 7),
    }
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    shard = read_shard(path)
    assert shard.metadata == {"format": "pt"}
    assert set(shard.tensors) == set(arrays)
    for name, array in arrays.items():
        assert shard.tensors[name].shape == array.shape
        assert shard.tensors[name].nbytes == array.nbytes
        assert shard.read(name).tobytes() == array.tobytes()
    begins = [e.begin for e in shard.tensors.values()]
    assert begins == sorted(begins)


@pytest.mark.parametrize("room", [None, 1024])
def test_the_library_reads_what_is_written(tmp_path: Path, room: int | None) -> None:
    extents = {"a": Extent("F32", (2, 3), 0, 24), "é": Extent("U8", (0,), 24, 24)}
    header = dump_header({"format": "pt"}, extents.items(), room)
    assert len(header) == (room or len(header))
    assert len(header) % 8 == 0
    path = tmp_path / "m.safetensors"
    path.write_bytes(header + np.arange(6, dtype=np.float32).tobytes())
    back = safetensors.numpy.load_file(path)
    assert back["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert back["é"].shape == (0,)
    assert {n: (e.dtype, e.shape) for n, e in read_shard(path).tensors.items()} == {
        "a": ("F32", (2, 3)),
        "é": ("U8", (0,)),
    }


def test_a_header_that_does_not_fit_its_room_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        dump_header({}, [("a", Extent("U8", (1,), 0, 1))], 16)


def test_the_largest_header_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    """100,000,000 bytes, as safetensors has it; spaces after the JSON are allowed."""
    path = tmp_path / "m.safetensors"
    limit = 100_000_000
    path.write_bytes(limit.to_bytes(8, "little") + b"{}" + b" " * (limit - 2))
    assert not read_shard(path).tensors
    path.write_bytes((limit + 1).to_bytes(8, "little") + b"{}" + b" " * (limit - 1))
    with pytest.raises(BadHeader, match=r"m\.safetensors"):
        read_shard(path)


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadHeader, match="gone"):
        read_shard(tmp_path / "gone.safetensors")
    with pytest.raises(BadHeader, match="directory"):
        read_shard(tmp_path)


def test_a_file_cut_while_open_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({"w": Tensor("U8", (100,), bytes(100))}))
    shard = read_shard(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadRange, match="'w'"):
        shard.read("w")


@given(st.binary(max_size=200))
def test_any_header_is_a_shard_or_an_error_of_ours(header: bytes) -> None:
    try:
        parse_header(header, 8 + len(header), Path("x"))
    except TersorError as error:
        assert str(error).startswith("x: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "F4"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 99), min_size=2, max_size=2) | JSON,
    }
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON, max_size=3))
def test_any_json_is_a_shard_or_an_error_of_ours(document: dict[str, object]) -> None:
    import json

    header = json.dumps(document).encode()
    try:
        shard = parse_header(header, 8 + len(header), Path("x"))
    except TersorError:
        return
    assert all(e.nbytes == 0 for e in shard.tensors.values())
