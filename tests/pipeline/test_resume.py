"""A resume takes up what is whole and nothing else: journals and data damaged in every way."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crafting import Tensor, gaussian, tree, write_model
from tersor.pipeline import writing as module
from tersor.pipeline.compress import compress
from tersor.pipeline.progress import Progress
from tersor.pipeline.shard_writer import ShardWriter

NAMES = ["a", "b", "c", "d"]


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {n: gaussian((64, 70), seed=i) for i, n in enumerate(NAMES)}
    return write_model(
        tmp_path_factory.mktemp("resume") / "plain", [tensors, {"e": Tensor("U8", (3,), b"abc")}]
    )


@pytest.fixture(scope="module")
def whole(plain: Path) -> dict[str, bytes]:
    """The output of an uninterrupted run."""
    return tree(compress(plain, plain.with_name("whole")).path)


@pytest.fixture(scope="module")
def stopped(plain: Path) -> Path:
    """The partial output of a run that stopped before its first shard was finished, all four tensors in its journal."""
    out = plain.with_name("stopped")

    def stop(self: ShardWriter, _: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(ShardWriter, "finish", stop)
        compress(plain, out)
    return out.with_name("stopped.partial")


@pytest.fixture
def partial(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "out.partial"))


def resume(plain: Path, partial: Path) -> int:
    """Run again; how many tensors were taken over."""
    return compress(plain, partial.with_suffix("")).resumed_tensors


def journal(partial: Path) -> Path:
    return next(partial.glob("*.journal"))


def data(partial: Path) -> Path:
    return next(partial.glob("*.part"))


def test_all_that_is_whole_is_taken_over(plain: Path, partial: Path, whole: dict[str, bytes]) -> None:
    assert resume(plain, partial) == 4
    assert tree(partial.with_suffix("")) == whole


def cut(n: int) -> Callable[[bytes], bytes]:
    return lambda content: content[: len(content) - n]


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (cut(1), 3),
        (cut(100), 3),
        (lambda b: b + b"\0" * 300, 4),
        (lambda b: b + b"\xff\xfe{}\n", 4),
        (lambda b: b + b"[]\n", 4),
        (lambda b: b"", 0),
        (lambda b: b"\xff" * len(b), 0),
        (lambda b: b.replace(b'"name": "c"', b'"name": "x"'), 2),
        (lambda b: b.replace(b'"BF16"', b'"F16"', 1), 0),
        (lambda b: b"\n".join(b.split(b"\n")[2:]), 0),  # the first line, which names the job, is gone
        (lambda b: b"\n".join(line for i, line in enumerate(b.split(b"\n")) if i != 2), 1),  # a tensor's is
    ],
)
def test_a_damaged_journal(
    plain: Path, partial: Path, whole: dict[str, bytes], damage: Callable[[bytes], bytes], kept: int
) -> None:
    journal(partial).write_bytes(damage(journal(partial).read_bytes()))
    taken = resume(plain, partial)
    assert tree(partial.with_suffix("")) == whole
    assert taken == kept


def test_any_damage_at_all(plain: Path, stopped: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    rng = random.Random(0)
    for i in range(60):
        partial = Path(shutil.copytree(stopped, tmp_path / f"{i}.partial"))
        file = rng.choice([journal(partial), data(partial)])
        content = bytearray(file.read_bytes())
        at = rng.randrange(len(content))
        if rng.random() < 0.3:
            del content[at:]
        else:
            content[at] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        resume(plain, partial)
        assert tree(partial.with_suffix("")) == whole, (file.name, at)


def test_without_journal_or_data(plain: Path, stopped: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    for i, lost in enumerate((journal, data)):
        partial = Path(shutil.copytree(stopped, tmp_path / f"{i}.partial"))
        lost(partial).unlink()
        assert resume(plain, partial) == 0
        assert tree(partial.with_suffix("")) == whole


def test_stopped_after_each_tensor(plain: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Every run does one tensor more and is stopped; the last one ends with the same bytes."""
    out, taken = tmp_path / "out", []
    for limit in range(1, 10):
        seen = 0

        def stop(step: Progress, limit: int = limit) -> None:
            nonlocal seen
            seen += 1
            if seen > limit:
                raise Stopped

        try:
            taken.append(compress(plain, out, on_progress=stop).resumed_tensors)
            break
        except Stopped:
            assert not out.exists()
    assert tree(out) == whole
    assert taken[0] >= 3


def test_an_output_of_other_room_is_begun_anew(
    plain: Path, partial: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room kept for the header is part of what a journal stands for."""
    original = module.header_room
    with monkeypatch.context() as patch:
        patch.setattr(module, "header_room", lambda *given: original(*given) + 8)
        assert resume(plain, partial) == 0
    assert tree(partial.with_suffix("")).keys() == whole.keys()
