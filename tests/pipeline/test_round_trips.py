"""compress, verify, decompress: every tensor comes back byte for byte, whatever it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from crafting import (
    Tensor,
    edit_header,
    edit_json,
    file_bytes,
    gaussian,
    read_tensors,
    split_file,
    tree,
    write_model,
)
from tersor.codec import Packed, encode
from tersor.format.checkpoint import open_checkpoint
from tersor.format.errors import VerificationError
from tersor.format.validate import check_compressed
from tersor.pipeline import stored_form
from tersor.pipeline.compress import compress
from tersor.pipeline.decompress import decompress
from tersor.pipeline.progress import Progress
from tersor.pipeline.verify import verify

ODD = {
    "empty": Tensor("BF16", (0, 128), b""),
    "scalar": Tensor("F32", (), b"\1\2\3\4"),
    "ids": Tensor("I64", (5, 7), bytes(range(70)) * 4),
    "mask": Tensor("BOOL", (3,), b"\0\1\1"),
    "double": gaussian((64, 32), "F32"),
    "f64": Tensor("F64", (64, 64), np.random.default_rng(0).standard_normal((64, 64)).tobytes()),
    "complex": Tensor("C64", (2,), bytes(16)),
    "four bit": Tensor("F4", (3, 2), b"\x12\x34\x56"),
    "scales": Tensor("F8_E8M0", (3,), b"\x7f\x80\x81"),
    "fp8": gaussian((65, 130), "F8_E4M3"),
    "fp8 too": gaussian((65, 130), "F8_E5M2"),
    "vector": gaussian((8192,)),  # one dimension: stored as it is
    "small": gaussian((63, 65)),  # 4095 elements: stored as it is
    "just": gaussian((64, 64)),  # 4096: coded
    "convolution": gaussian((32, 16, 3, 3), "F16"),
    "experts": gaussian((3, 40, 70)),
    "prime": gaussian((97, 101)),
    "column": gaussian((4999, 1)),
    "noise": Tensor("F8_E4M3", (64, 64), np.random.default_rng(1).bytes(4096)),  # does not shrink
    "nan": Tensor("BF16", (64, 64), b"\xc1\x7f" * 4096),
    "zeros": Tensor("F32", (64, 64), bytes(4 * 4096)),
    "tied a": gaussian((70, 80), seed=5),
    "tied b": gaussian((70, 80), seed=5),
    "ünï.코드/w": gaussian((64, 65)),
    "quote\"back\\slash\n": gaussian((64, 64)),
}  # fmt: skip
CODED = {"fp8", "fp8 too", "just", "convolution", "experts", "prime", "column", "nan", "zeros", "tied a", "tied b",
         "ünï.코드/w", "quote\"back\\slash\n"}  # fmt: skip


@pytest.fixture
def odd_model(tmp_path: Path) -> Path:
    names = list(ODD)
    return write_model(tmp_path / "odd", [{n: ODD[n] for n in names[i::3]} for i in range(3)])


def tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a model directory."""
    return {n: t for f in sorted(path.glob("*.safetensors")) for n, t in read_tensors(f).items()}


def test_the_demo_model(demo_model: Path, tmp_path: Path) -> None:
    made = compress(demo_model, tmp_path / "c")
    assert 0.6 < made.ratio < 0.72
    assert made.original_bytes == open_checkpoint(demo_model).nbytes
    assert made.stored_bytes == open_checkpoint(made.path).nbytes
    proof = verify(made.path, against=demo_model)
    assert proof.ok
    assert proof.tensors == made.tensors
    back = decompress(made.path, tmp_path / "d")
    assert (back.original_bytes, back.stored_bytes) == (made.original_bytes, made.stored_bytes)
    original, restored = tree(demo_model), tree(back.path)
    assert original.keys() == restored.keys()
    for file in original.keys() - {"config.json"}:
        assert original[file] == restored[file], file
    assert json.loads(original["config.json"]) == json.loads(restored["config.json"])


def test_odd_tensors_in_several_shards(odd_model: Path, tmp_path: Path) -> None:
    made = compress(odd_model, tmp_path / "c")
    entries = check_compressed(open_checkpoint(made.path)).entries
    assert {n for n, e in entries.items() if e.codec == "huffman"} == CODED
    for name, t in ODD.items():
        assert (entries[name].dtype, entries[name].shape) == (t.dtype, t.shape)
        assert entries[name].sha256 == hashlib.sha256(t.data).hexdigest()
    assert verify(made.path, against=odd_model).ok
    back = decompress(made.path, tmp_path / "d").path
    assert tensors(back) == ODD
    for file in odd_model.glob("*.safetensors"):
        assert (back / file.name).read_bytes() == file.read_bytes()
    indices = [json.loads((m / "model.safetensors.index.json").read_text()) for m in (odd_model, back)]
    assert indices[0] == indices[1]
    assert (made.path / "tokenizer.json").read_bytes() == (odd_model / "tokenizer.json").read_bytes()


def test_a_second_time_gives_the_same_bytes(odd_model: Path, tmp_path: Path) -> None:
    a, b = compress(odd_model, tmp_path / "a").path, compress(odd_model, tmp_path / "b").path
    assert tree(a) == tree(b)
    again = compress(decompress(a, tmp_path / "plain").path, tmp_path / "c").path
    assert tree(again) == tree(a)


def test_a_single_file(demo_model: Path, tmp_path: Path) -> None:
    made = compress(demo_model / "model.safetensors", tmp_path / "c.safetensors")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["c.safetensors"]
    assert verify(made.path, against=demo_model / "model.safetensors").ok
    assert verify(made.path, against=demo_model).ok
    back = decompress(made.path, tmp_path / "d.safetensors").path
    assert back.read_bytes() == (demo_model / "model.safetensors").read_bytes()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["c.safetensors", "d.safetensors"]


def test_the_safetensors_library_opens_what_is_written(odd_model: Path, tmp_path: Path) -> None:
    made = compress(odd_model, tmp_path / "c").path
    for file in made.glob("*.safetensors"):
        with safetensors.safe_open(file, "np") as opened:
            assert opened.metadata()["format"] == "pt"
            names = set(opened.keys())
        assert names == read_tensors(file).keys()
    guard = {n: t for n, t in tensors(made).items() if n in CODED}
    assert guard == dict.fromkeys(CODED, Tensor("U8", (0,), b""))


def test_files_without_metadata(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "m", [{"w": gaussian((64, 64))}], metadata=False)
    made = compress(plain, tmp_path / "c").path
    back = decompress(made, tmp_path / "d").path
    assert (back / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_header_order_of_tensors_without_data(tmp_path: Path) -> None:
    """Several tensors at one place in the file keep the order of the header."""
    content = {n: Tensor("F32", (0,), b"") for n in "zay"} | {"w": gaussian((64, 64))}
    plain = tmp_path / "m.safetensors"
    plain.write_bytes(file_bytes(content, {"format": "pt"}))
    made = compress(plain, tmp_path / "c.safetensors").path
    assert decompress(made, tmp_path / "d.safetensors").path.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("part", ["_book", "_offsets", "_tiles"])
def test_a_tensor_that_is_called_like_a_part_of_another(tmp_path: Path, part: str) -> None:
    for shards in (
        [{"w": gaussian((64, 64)), "w" + part: gaussian((64, 65), seed=1)}],
        [{"w" + part: Tensor("U8", (256,), bytes(256))}, {"w": gaussian((64, 64))}],
    ):
        plain = write_model(tmp_path / f"m{len(shards)}", shards)
        made = compress(plain, tmp_path / f"c{len(shards)}").path
        assert verify(made, against=plain).ok
        assert check_compressed(open_checkpoint(made)).entries["w"].codec == "raw"
        assert tensors(decompress(made, tmp_path / f"d{len(shards)}").path) == tensors(plain)


def test_a_faulty_encoder_is_caught_before_anything_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that flips between encoding and writing: every tensor is decoded and compared first."""

    def faulty(*arguments: Any) -> Packed:
        packed = encode(*arguments)
        tiles = packed.tiles.copy()
        tiles[77] ^= 1
        return dataclasses.replace(packed, tiles=tiles)

    plain = write_model(tmp_path / "m", [{"first": gaussian((64, 64)), "second": gaussian((64, 64), seed=1)}])
    with monkeypatch.context() as patch, pytest.raises(VerificationError, match="'first'"):
        patch.setattr(stored_form, "encode", faulty)
        compress(plain, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert verify(compress(plain, tmp_path / "c").path, against=plain).ok


def test_a_model_of_nothing(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "m", [{}])
    made = compress(plain, tmp_path / "c")
    assert (made.tensors, made.ratio) == (0, 1.0)
    assert verify(made.path).ok
    assert tensors(decompress(made.path, tmp_path / "d").path) == {}


def test_the_config_of_another_quantisation_is_kept(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "m", [{"w": gaussian((64, 64), "F8_E4M3")}])
    edit_json(plain / "config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"}))
    made = compress(plain, tmp_path / "c").path
    ours = json.loads((made / "config.json").read_text())["quantization_config"]
    assert ours["quant_method"] == "tersor"
    assert ours["original"] == {"quant_method": "fp8"}
    back = json.loads((decompress(made, tmp_path / "d").path / "config.json").read_text())
    assert back == json.loads((plain / "config.json").read_text())


def test_resharded_by_another_tool(odd_model: Path, tmp_path: Path) -> None:
    """Parts of one tensor in two shards: allowed, if each manifest describes what its shard holds a part of."""
    plain = write_model(tmp_path / "m", [{"w": gaussian((64, 64))}, {"v": gaussian((64, 64), seed=1)}])
    made = compress(plain, tmp_path / "c").path
    one, two = sorted(made.glob("*.safetensors"))
    head, data = split_file(one.read_bytes())
    assert list(head)[-1] == "w_tiles"
    begin, end = head["w_tiles"]["data_offsets"]
    other_head, other_data = split_file(two.read_bytes())
    moved = {**head["w_tiles"], "data_offsets": [len(other_data), len(other_data) + end - begin]}
    manifests = [json.loads(h["__metadata__"]["tersor"]) for h in (head, other_head)]
    manifests[1]["tensors"].update(manifests[0]["tensors"])
    two.write_bytes(two.read_bytes() + data[begin:end])
    one.write_bytes(one.read_bytes()[: -(end - begin)])
    edit_header(one, lambda h: h.pop("w_tiles"))
    edit_header(
        two,
        lambda h: h.update(w_tiles=moved, __metadata__={"format": "pt", "tersor": json.dumps(manifests[1])}),
    )
    edit_json(made / "model.safetensors.index.json", lambda i: i["weight_map"].update(w_tiles=two.name))
    assert verify(made, against=plain).ok
    assert tensors(decompress(made, tmp_path / "d").path) == tensors(plain)


def test_progress_adds_up(odd_model: Path, tmp_path: Path) -> None:
    for job, source, out in ((compress, odd_model, "c"), (decompress, tmp_path / "c", "d")):
        steps: list[Progress] = []
        result = job(source, tmp_path / out, on_progress=steps.append)
        assert {s.tensor for s in steps} == ODD.keys()
        assert [s.done_bytes for s in steps] == sorted(s.done_bytes for s in steps)
        assert steps[-1].done_bytes == steps[-1].total_bytes == result.original_bytes
        assert steps[-1].stored_bytes == result.stored_bytes
