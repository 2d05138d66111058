"""Random damage: jobs end with an error of ours or with the truth, and nothing else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from crafting import Tensor, edit_tensor, gaussian, read_tensors, split_file, write_model
from tersor.format.errors import TersorError
from tersor.pipeline.compress import compress
from tersor.pipeline.decompress import decompress
from tersor.pipeline.verify import verify

CONTENT = {
    "w": gaussian((20, 260)),
    "v": gaussian((64, 64), "F8_E5M2"),
    "b": Tensor("F32", (5,), bytes(range(20))),
}
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage")
    plain = write_model(path / "plain", [{"w": CONTENT["w"]}, {"v": CONTENT["v"], "b": CONTENT["b"]}])
    return compress(plain, path / "sound").path


def holds(model: Path) -> bool:
    """Whether verify says ok; an error of ours is a no, any other one fails the test."""
    try:
        return verify(model).ok
    except TersorError:
        return False


def restored(model: Path, out: Path) -> dict[str, Tensor] | None:
    """What decompress gives, None if it refuses; then nothing may lie at `out`."""
    try:
        decompress(model, out)
    except TersorError:
        assert not out.exists()
        return None
    finally:
        shutil.rmtree(out.with_name(out.name + ".partial"), ignore_errors=True)
    found = {n: t for f in out.glob("*.safetensors") for n, t in read_tensors(f).items()}
    shutil.rmtree(out)
    return found


def damage(content: bytes, rng: random.Random) -> bytes:
    """A bit flipped, a byte overwritten, an end cut off, a piece doubled or dropped."""
    at, other = rng.randrange(len(content)), rng.randrange(len(content))
    match rng.randrange(6):
        case 0 | 1:
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case 2:
            return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        case 3:
            return content[:at]
        case 4:
            return content[:at] + content[other : other + 16] + content[at:]
        case _:
            return content[:at] + content[at + rng.randrange(1, 32) :]


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_to_any_file(sound: Path, tmp_path: Path, seed: int) -> None:
    """100 times a seed, half of them in the first 2 kB, where the headers are."""
    rng = random.Random(seed)
    files = [f for f in sorted(sound.iterdir()) if f.name != "tokenizer.json"]
    model = Path(shutil.copytree(sound, tmp_path / "model"))
    refused = 0
    for i in range(100):
        file = rng.choice(files)
        content = file.read_bytes()
        head = min(len(content), 2000 if i % 2 else len(content))
        broken = damage(content[:head], rng) + content[head:]
        (model / file.name).write_bytes(broken)
        whole = holds(model)
        found = restored(model, tmp_path / "out")
        if whole:
            assert found == CONTENT, (file.name, i)
        else:
            assert found is None or found == CONTENT, (file.name, i)
            refused += 1
        (model / file.name).write_bytes(content)
    assert refused > 60
    assert holds(model)


def test_any_damage_to_a_model_that_is_to_be_compressed(sound: Path, tmp_path: Path) -> None:
    """It is refused and nothing is written, or it is compressed just as it is."""
    rng = random.Random(11)
    plain = Path(shutil.copytree(sound.with_name("plain"), tmp_path / "plain"))
    files = [f for f in sorted(plain.iterdir()) if f.suffix == ".safetensors" or "index" in f.name]
    refused = 0
    for i in range(150):
        file = rng.choice(files)
        content = file.read_bytes()
        head = min(len(content), 300 if i % 3 else len(content))
        file.write_bytes(damage(content[:head], rng) + content[head:])
        out = tmp_path / "out"
        try:
            compress(plain, out)
        except TersorError:
            refused += 1
            assert sorted(f.name for f in tmp_path.iterdir()) == ["plain"]
        else:
            assert verify(out, against=plain).ok
            shutil.rmtree(out)
        file.write_bytes(content)
    assert 75 < refused < 150


def test_no_flipped_bit_of_the_payload_is_ever_ok(sound: Path, tmp_path: Path) -> None:
    """Random bits all over the data of a shard."""
    rng = random.Random(7)
    model = Path(shutil.copytree(sound, tmp_path / "model"))
    content = (sound / SHARD).read_bytes()
    start = len(content) - len(split_file(content)[1])
    for _ in range(250):
        bit = rng.randrange(8 * start, 8 * len(content))
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        (model / SHARD).write_bytes(broken)
        assert not holds(model), bit


def test_no_flipped_digit_of_a_hash_is_ever_ok(sound: Path, tmp_path: Path) -> None:
    content = (sound / SHARD).read_bytes()
    first = content.index(b'sha256\\":\\"') + len(b'sha256\\":\\"')
    model = Path(shutil.copytree(sound, tmp_path / "model"))
    for at in range(first, first + 64):
        for bit in range(8):
            broken = bytearray(content)
            broken[at] ^= 1 << bit
            (model / SHARD).write_bytes(broken)
            assert not holds(model), (at, bit)


def test_a_tensor_of_another_model_is_found(sound: Path, tmp_path: Path) -> None:
    """A whole, well-formed tensor put in the place of another."""
    model = Path(shutil.copytree(sound, tmp_path / "model"))
    other = compress(write_model(tmp_path / "p", [{"w": gaussian((20, 260), seed=9)}]), tmp_path / "c").path
    theirs, ours = (read_tensors(m)["w_tiles"] for m in (other / "model.safetensors", model / SHARD))
    size = min(len(theirs.data), len(ours.data))
    edit_tensor(model / SHARD, "w_tiles", lambda t: t.__setitem__(slice(0, size), theirs.data[:size]))
    assert not holds(model)
