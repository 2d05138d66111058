"""A list of broken checkpoints: each breaks one rule of FORMAT.md, and names the error it must raise.

`write_compressed` gives a sound one of three shards; each `Damage` then breaks it in place. Run as
a script, it leaves all of them in a directory to look at: `python tests/malicious.py DIR`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crafting import Tensor, edit_header, edit_json, edit_tensor, gaussian, join_file, split_file, write_model
from tersor.pipeline.compress import compress

INDEX = "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is broken: how, the error's name, and what its message must hold (file, tensor)."""

    name: str
    error: str
    mentions: tuple[str, ...]
    do: Callable[[Path], Any]
    in_data: bool = False  # only decoding shows it; `verify` reports it as the failure of a tensor


def write_compressed(path: Path) -> Path:
    """A sound compressed model: "a" (bf16) in one shard, "b" (f16) and raw "c" in the second, "d" in the third."""
    shards = [
        {"a": gaussian((40, 300))},
        {"b": gaussian((64, 128), "F16", 1), "c": Tensor("F32", (4,), bytes(range(16)))},
        {"d": gaussian((70, 100), "F8_E4M3", 2)},
    ]
    original = write_model(path.with_name(path.name + "-original"), shards)
    compress(original, path)
    return path


def header(file: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Damage to a shard's header."""
    return lambda path: edit_header(path / file, edit)


def manifest(file: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Damage to a shard's manifest."""

    def change(head: dict[str, Any]) -> None:
        document = json.loads(head["__metadata__"]["tersor"])
        edit(document)
        head["__metadata__"]["tersor"] = json.dumps(document)

    return lambda path: edit_header(path / file, change)


def entry(file: str, name: str, **fields: Any) -> Callable[[Path], None]:
    """Damage to one tensor's manifest entry."""
    return manifest(file, lambda m: m["tensors"][name].update(fields))


def manifest_text(file: str, text: str) -> Callable[[Path], None]:
    """Another manifest, whatever it is."""
    return header(file, lambda h: h["__metadata__"].update(tersor=text))


def raw_header(file: str, text: bytes) -> Callable[[Path], None]:
    """Another header, taken as it is."""
    return lambda path: (path / file).write_bytes(join_file(text, split_file((path / file).read_bytes())[1]))


def data(file: str, name: str, edit: Callable[[bytearray], Any]) -> Callable[[Path], None]:
    """Damage to the bytes of a stored tensor."""
    return lambda path: edit_tensor(path / file, name, edit)


def content(file: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Damage to a whole file."""
    return lambda path: (path / file).write_bytes(edit((path / file).read_bytes()))


def index(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Damage to the index."""
    return lambda path: edit_json(path / INDEX, edit)


def config(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Damage to config.json."""
    return lambda path: edit_json(path / "config.json", edit)


def rename_stored(file: str, old: str, new: str) -> Callable[[Path], None]:
    """A stored tensor under another name, in header and index."""

    def change(path: Path) -> None:
        edit_header(path / file, lambda h: h.update({new: h.pop(old)}))
        edit_json(path / INDEX, lambda i: i["weight_map"].update({new: i["weight_map"].pop(old)}))

    return change


def drop_guards(path: Path) -> None:
    """Without any guard."""
    for file, name in ((ONE, "a"), (TWO, "b"), (THREE, "d")):
        edit_header(path / file, lambda h, name=name: h.pop(name))
        edit_json(path / INDEX, lambda i, name=name: i["weight_map"].pop(name))


def in_two_shards(path: Path) -> None:
    """The raw tensor "c" also in the first shard."""
    head, body = split_file((path / ONE).read_bytes())
    head["c"] = {"dtype": "F32", "shape": [4], "data_offsets": [len(body), len(body) + 16]}
    (path / ONE).write_bytes(join_file(head, body + bytes(16)))


def described_otherwise(path: Path) -> None:
    """The first shard describes "c", differently from the second."""
    described = {"codec": "raw", "dtype": "F32", "shape": [4], "sha256": "0" * 64}
    manifest(ONE, lambda m: m["tensors"].update(c=described))(path)


def claims_anothers_part(path: Path) -> None:
    """A raw tensor whose name is a part of the huffman tensor "b"."""
    described = {"codec": "raw", "dtype": "U8", "shape": [256], "sha256": "0" * 64}
    manifest(TWO, lambda m: m["tensors"].update(b_book=described))(path)


def shift(name: str, by: tuple[int, int], shape: list[int] | None = None) -> Callable[[dict[str, Any]], None]:
    """Move the ends of a data range."""

    def change(head: dict[str, Any]) -> None:
        begin, end = head[name]["data_offsets"]
        head[name]["data_offsets"] = [begin + by[0], end + by[1]]
        if shape is not None:
            head[name]["shape"] = shape

    return change


def swap_lengths(book: bytearray) -> None:
    """Exchange the shortest and the longest code: as complete as before, and wrong."""
    used = [i for i, n in enumerate(book) if n]
    a, b = min(used, key=lambda i: book[i]), max(used, key=lambda i: book[i])
    book[a], book[b] = book[b], book[a]


def shift_offset(offsets: bytearray) -> None:
    """The second tile one unit later."""
    values = np.frombuffer(offsets, "<u4").copy()
    values[1] += 1
    offsets[:] = values.tobytes()


def raise_byte(at: int) -> Callable[[bytearray], None]:
    """One byte larger by one, so that it certainly differs."""

    def change(part: bytearray) -> None:
        part[at] = (part[at] + 1) % 256

    return change


DAMAGES = [
    # section 1: directory
    Damage("config without us", "NotTersor", ("config.json",), config(lambda c: c.pop("quantization_config"))),
    Damage("config of another method", "NotTersor", ("config.json",),
           config(lambda c: c["quantization_config"].update(quant_method="gptq"))),
    Damage("config with a method that is no object", "NotTersor", ("config.json",),
           config(lambda c: c.update(quantization_config="tersor"))),
    Damage("config of a later version", "UnknownVersion", ("config.json", "2"),
           config(lambda c: c["quantization_config"].update(format_version=2))),
    Damage("config without a version", "UnknownVersion", ("config.json", "None"),
           config(lambda c: c["quantization_config"].pop("format_version"))),
    Damage("config is not JSON", "BadHeader", ("config.json",), content("config.json", lambda _: b"{")),
    Damage("config is a list", "BadHeader", ("config.json",), content("config.json", lambda _: b"[]")),
    Damage("config is not UTF-8", "BadHeader", ("config.json",), content("config.json", lambda _: b"\xff\xfe{")),
    Damage("config nested too deep", "BadHeader", ("config.json",), content("config.json", lambda _: b"[" * 100_000)),
    Damage("shard missing", "MissingShard", (TWO,), lambda p: (p / TWO).unlink()),
    Damage("index is not JSON", "BadHeader", (INDEX,), content(INDEX, lambda b: b[:-5])),
    Damage("index without a map", "IndexMismatch", (INDEX,), index(lambda i: i.pop("weight_map"))),
    Damage("index map to numbers", "IndexMismatch", (INDEX,), index(lambda i: i["weight_map"].update(a=1))),
    Damage("index points to no file", "MissingShard", ("nowhere.safetensors",),
           index(lambda i: i["weight_map"].update(a="nowhere.safetensors"))),
    Damage("index points outside", "IndexMismatch", (INDEX, "../../secret.safetensors"),
           index(lambda i: i["weight_map"].update(a="../../secret.safetensors"))),
    Damage("index points to an absolute path", "IndexMismatch", (INDEX, "/etc/x.safetensors"),
           index(lambda i: i["weight_map"].update(a="/etc/x.safetensors"))),
    Damage("index points to another kind of file", "IndexMismatch", (INDEX, "config.json"),
           index(lambda i: i["weight_map"].update(a="config.json"))),
    Damage("index points to a name with a zero byte", "MissingShard", ("index",),
           index(lambda i: i["weight_map"].update(a="a\0.safetensors"))),
    Damage("index names the wrong shard", "IndexMismatch", (INDEX, "'c'", TWO),
           index(lambda i: i["weight_map"].update(c=ONE))),
    Damage("index names what is not stored", "IndexMismatch", (INDEX, "'ghost'"),
           index(lambda i: i["weight_map"].update(ghost=ONE))),
    Damage("index leaves out a tensor", "IndexMismatch", (INDEX, "'c'"),
           index(lambda i: i["weight_map"].pop("c"))),
    Damage("tensor in two shards", "IndexMismatch", ("'c'", ONE, TWO), in_two_shards),
    # section 2: safetensors
    Damage("shard is empty", "BadHeader", (ONE,), content(ONE, lambda _: b"")),
    Damage("shard of seven bytes", "BadHeader", (ONE,), content(ONE, lambda b: b[:7])),
    Damage("shard cut in its header", "BadHeader", (ONE,), content(ONE, lambda b: b[:100])),
    Damage("shard cut in its data", "BadRange", (ONE,), content(ONE, lambda b: b[:-1])),
    Damage("shard with something appended", "BadRange", (ONE,), content(ONE, lambda b: b + b"\0")),
    Damage("huge header", "BadHeader", (ONE,), content(ONE, lambda b: (100_000_001).to_bytes(8, "little") + b[8:])),
    Damage("header longer than the file", "BadHeader", (ONE,),
           content(ONE, lambda b: (90_000_000).to_bytes(8, "little") + b[8:])),
    Damage("negative header length", "BadHeader", (ONE,), content(ONE, lambda b: b"\xff" * 8 + b[8:])),
    Damage("header is not JSON", "BadHeader", (ONE,), raw_header(ONE, b'{"a":')),
    Damage("header is not UTF-8", "BadHeader", (ONE,), raw_header(ONE, b'{"\xff":1}')),
    Damage("header is a list", "BadHeader", (ONE,), raw_header(ONE, b"[]")),
    Damage("header nested too deep", "BadHeader", (ONE,), raw_header(ONE, b"[" * 100_000)),
    Damage("header with a number of 5000 digits", "BadHeader", (ONE,), raw_header(ONE, b'{"a":' + b"9" * 5000 + b"}")),
    Damage("header with a name that is no text", "BadHeader", (ONE,),
           raw_header(ONE, b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')),
    Damage("header names a tensor twice", "BadHeader", (ONE, "twice"),
           raw_header(ONE, b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
                           b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')),
    Damage("metadata of numbers", "BadHeader", (ONE,), header(ONE, lambda h: h["__metadata__"].update(x=1))),
    Damage("metadata is a list", "BadHeader", (ONE,), header(ONE, lambda h: h.update(__metadata__=[]))),
    Damage("entry without a shape", "BadHeader", (ONE, "'a_book'"), header(ONE, lambda h: h["a_book"].pop("shape"))),
    Damage("entry is a number", "BadHeader", (ONE, "'a_book'"), header(ONE, lambda h: h.update(a_book=7))),
    Damage("entry of an unknown dtype", "BadHeader", (ONE, "'a_book'", "Q7"),
           header(ONE, lambda h: h["a_book"].update(dtype="Q7"))),
    Damage("entry of a dtype that is no string", "BadHeader", (ONE, "'a_book'"),
           header(ONE, lambda h: h["a_book"].update(dtype=["U8"]))),
    Damage("negative size", "BadHeader", (ONE, "'a_book'"), header(ONE, lambda h: h["a_book"].update(shape=[-256]))),
    Damage("size that is no integer", "BadHeader", (ONE, "'a_book'"),
           header(ONE, lambda h: h["a_book"].update(shape=[256.0]))),
    Damage("size beyond 63 bits", "BadHeader", (ONE, "'a_book'"),
           header(ONE, lambda h: h["a_book"].update(shape=[1 << 64, 0]))),
    Damage("sizes with an endless product", "BadHeader", (ONE, "'a_book'"),
           header(ONE, lambda h: h["a_book"].update(shape=[(1 << 63) - 1] * 200_000))),
    Damage("range backwards", "BadHeader", (ONE, "'a_book'"),
           header(ONE, lambda h: h["a_book"].update(data_offsets=[256, 0]))),
    Damage("range of three numbers", "BadHeader", (ONE, "'a_book'"),
           header(ONE, lambda h: h["a_book"].update(data_offsets=[0, 1, 256]))),
    Damage("range too short for its shape", "BadRange", (ONE, "'a_book'"), header(ONE, shift("a_book", (0, -1)))),
    Damage("elements that end in half a byte", "BadRange", (ONE, "'a_book'"),
           header(ONE, lambda h: h["a_book"].update(dtype="F4", shape=[511]))),
    Damage("range that overlaps", "BadRange", (ONE, "'a_offsets'", "overlaps"),
           header(ONE, shift("a_offsets", (-16, -16)))),
    Damage("range that leaves a hole", "BadRange", (ONE, "'a_offsets'", "hole"),
           header(ONE, shift("a_offsets", (16, 16)))),
    Damage("range that leaves the file", "BadRange", (THREE,), header(THREE, shift("d_tiles", (1 << 40, 1 << 40)))),
    # section 2: manifest
    Damage("no metadata", "BadManifest", (ONE,), header(ONE, lambda h: h.pop("__metadata__"))),
    Damage("no manifest", "BadManifest", (ONE,), header(ONE, lambda h: h["__metadata__"].pop("tersor"))),
    Damage("manifest is not JSON", "BadManifest", (ONE,), manifest_text(ONE, "{")),
    Damage("manifest is a list", "BadManifest", (ONE,), manifest_text(ONE, "[]")),
    Damage("manifest nested too deep", "BadManifest", (ONE,), manifest_text(ONE, "[" * 100_000)),
    Damage("manifest without a version", "BadManifest", (ONE,), manifest(ONE, lambda m: m.pop("version"))),
    Damage("manifest of a later version", "UnknownVersion", (ONE, "2"), manifest(ONE, lambda m: m.update(version=2))),
    Damage("manifest without tensors", "BadManifest", (ONE,), manifest(ONE, lambda m: m.pop("tensors"))),
    Damage("manifest names a tensor twice", "BadManifest", (THREE, "twice"),
           header(THREE, lambda h: h["__metadata__"].update(
               tersor=h["__metadata__"]["tersor"].replace('"tensors":{', '"tensors":{"d":{},')))),
    Damage("manifest entry is a number", "BadManifest", (ONE, "'a'"),
           manifest(ONE, lambda m: m["tensors"].update(a=1))),
    Damage("manifest entry without a hash", "BadManifest", (ONE, "'a'"),
           manifest(ONE, lambda m: m["tensors"]["a"].pop("sha256"))),
    Damage("manifest entry with something more", "BadManifest", (ONE, "'a'"), entry(ONE, "a", extra=1)),
    Damage("hash that is no hash", "BadManifest", (ONE, "'a'"), entry(ONE, "a", sha256="0" * 63)),
    Damage("shape that is no list", "BadManifest", (ONE, "'a'"), entry(ONE, "a", shape=12000)),
    Damage("shape with a negative size", "BadManifest", (ONE, "'a'"), entry(ONE, "a", shape=[-40, -300])),
    Damage("shape with an endless product", "BadManifest", (ONE, "'a'"), entry(ONE, "a", shape=[1 << 62] * 200_000)),
    Damage("codec is no string", "BadManifest", (ONE, "'a'"), entry(ONE, "a", codec=1)),
    Damage("codec unknown", "UnknownCodec", (ONE, "'a'", "ans"), entry(ONE, "a", codec="ans")),
    Damage("dtype unknown", "UnknownDtype", (ONE, "'a'", "BF17"), entry(ONE, "a", dtype="BF17")),
    Damage("dtype that huffman cannot hold", "UnknownDtype", (ONE, "'a'", "I16"), entry(ONE, "a", dtype="I16")),
    Damage("shards contradict each other", "BadManifest", ("'c'", TWO), described_otherwise),
    Damage("two tensors claim one part", "BadManifest", ("'b_book'",), claims_anothers_part),
    # section 2: stored tensors
    Damage("described and not stored", "MissingTensor", ("'ghost'",), manifest(TWO, lambda m: m["tensors"].update(
        ghost={"codec": "raw", "dtype": "F32", "shape": [4], "sha256": "0" * 64}))),
    Damage("part renamed", "MissingTensor", ("'b'", "'b_book'"), rename_stored(TWO, "b_book", "b_bock")),
    Damage("stored and not described", "ExtraTensor", (TWO, "'c'"), manifest(TWO, lambda m: m["tensors"].pop("c"))),
    Damage("raw tensor of another dtype", "WrongDtype", (TWO, "'c'", "I32"),
           header(TWO, lambda h: h["c"].update(dtype="I32"))),
    Damage("raw tensor of another shape", "WrongShape", (TWO, "'c'", "[2, 2]"),
           header(TWO, lambda h: h["c"].update(shape=[2, 2]))),
    Damage("book of another dtype", "WrongDtype", (TWO, "'b'", "'b_book'"),
           header(TWO, lambda h: h["b_book"].update(dtype="I8"))),
    Damage("book of another shape", "WrongShape", (TWO, "'b'", "'b_book'"),
           header(TWO, lambda h: h["b_book"].update(shape=[16, 16]))),
    Damage("offsets for another grid", "WrongShape", (ONE, "'a'", "'a_offsets'"), entry(ONE, "a", shape=[400, 30])),
    Damage("tiles of two dimensions", "WrongShape", (ONE, "'a'", "'a_tiles'"),
           header(ONE, lambda h: h["a_tiles"].update(shape=[1, *h["a_tiles"]["shape"]]))),
    Damage("guard that is no guard", "WrongDtype", (ONE, "'a'"), header(ONE, lambda h: h["a"].update(dtype="BF16"))),
    Damage("no guard anywhere", "MissingGuard", (), drop_guards),
    # section 3: data
    Damage("book not complete", "BadBook", (ONE, "'a'"), data(ONE, "a_book", raise_byte(120)), True),
    Damage("book with long codes", "BadBook", (ONE, "'a'"),
           data(ONE, "a_book", lambda b: b.__setitem__(slice(None), bytes([13]) * 256)), True),
    Damage("book empty", "BadBook", (ONE, "'a'"),
           data(ONE, "a_book", lambda b: b.__setitem__(slice(None), bytes(256))), True),
    Damage("book with two codes exchanged", "HashMismatch", (ONE, "'a'"), data(ONE, "a_book", swap_lengths), True),
    Damage("offsets not from 0", "BadOffsets", (ONE, "'a'"), data(ONE, "a_offsets", raise_byte(0)), True),
    Damage("offsets fall", "BadOffsets", (ONE, "'a'"), data(ONE, "a_offsets", raise_byte(7)), True),
    Damage("offsets leave the buffer", "BadOffsets", (ONE, "'a'"), data(ONE, "a_offsets", raise_byte(-1)), True),
    Damage("offset off by one", "BadTile", (ONE, "'a'", "tile 0"), data(ONE, "a_offsets", shift_offset), True),
    Damage("stream length lies", "BadTile", (THREE, "'d'", "tile 0"),
           data(THREE, "d_tiles", lambda t: t.__setitem__(0, 0)), True),
    Damage("raw byte flipped", "HashMismatch", (ONE, "'a'"), data(ONE, "a_tiles", raise_byte(0)), True),
    Damage("tail not zero", "NotCanonical", (ONE, "'a'", "spare"), data(ONE, "a_tiles", raise_byte(-1)), True),
    Damage("hash of something else", "HashMismatch", (ONE, "'a'"), entry(ONE, "a", sha256="0" * 64), True),
    Damage("raw tensor flipped", "HashMismatch", (TWO, "'c'"), data(TWO, "c", raise_byte(3)), True),
    Damage("dtype exchanged for one as wide", "HashMismatch", (TWO, "'b'"), entry(TWO, "b", dtype="BF16"), True),
]  # fmt: skip


def main(target: Path) -> None:
    """Write every broken checkpoint into `target`, which must not exist."""
    target.mkdir()
    sound = write_compressed(target / "sound")
    for damage in DAMAGES:
        broken = target / damage.name.replace(" ", "-")
        shutil.copytree(sound, broken)
        damage.do(broken)
        print(f"{damage.error:16} {broken}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
