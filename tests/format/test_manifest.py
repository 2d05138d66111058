"""The manifest: written and read back, and nothing but a manifest read as one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.format.errors import TersorError
from tersor.format.manifest import TensorEntry, dump_manifest, parse_manifest
from tersor.format.strict_json import loads

HASH = "0123456789abcdef" * 4

ENTRIES = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.one_of(
        st.builds(
            TensorEntry,
            st.just("huffman"),
            st.sampled_from(["BF16", "F16", "F32", "F8_E4M3", "F8_E5M2"]),
            st.lists(st.integers(0, 2**15), max_size=3).map(tuple),
            st.just(HASH),
        ),
        st.builds(
            TensorEntry,
            st.just("raw"),
            st.sampled_from(["BOOL", "I64", "BF16", "F64"]),
            st.lists(st.integers(0, 2**15), max_size=3).map(tuple),
            st.just(HASH),
        ),
    ),
    max_size=6,
)


@given(ENTRIES)
def test_written_and_read_back(entries: dict[str, TensorEntry]) -> None:
    assert parse_manifest({"tersor": dump_manifest(entries)}) == entries


def test_written_the_same_whatever_the_order() -> None:
    a, b = (TensorEntry("raw", "I64", (n,), HASH) for n in (1, 2))
    assert dump_manifest({"a": a, "b": b}) == dump_manifest({"b": b, "a": a})
    assert dump_manifest({"a": a}) == (
        '{"version":1,"tensors":{"a":{"codec":"raw","dtype":"I64","shape":[1],"sha256":"' + HASH + '"}}}'
    )


def test_bytes_of_the_original() -> None:
    assert TensorEntry("huffman", "BF16", (3, 5), HASH).nbytes == 30
    assert TensorEntry("raw", "I64", (), HASH).nbytes == 8


@given(st.text(max_size=80))
def test_any_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(TersorError, match=r"^file: "):
        parse_manifest({"tersor": text}, "file")


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":1}', '[{"x":{"a":1,"b":2,"a":3}}]', "[" * 10**5, '{"\\ud83d":1}', '["\\udc00"]', "{", ""],
)
def test_strict_json_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("value", [{"a": [1, {"a": None}]}, "\U0001f600 é", [], 1.5])
def test_strict_json_reads_all_else(value: object) -> None:
    assert loads(json.dumps(value)) == value
