"""What a job refuses before it writes anything, and what it leaves alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crafting import gaussian, tree, write_model
from tersor.format.errors import FormatError, NotTersor, OutputExists, UsageError
from tersor.pipeline.compress import compress
from tersor.pipeline.decompress import decompress

Job = Callable[..., Any]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_model(tmp_path / "plain", [{"w": gaussian((64, 64))}])


@pytest.fixture(params=[compress, decompress])
def job(request: pytest.FixtureRequest) -> Job:
    """Both jobs that write."""
    chosen: Job = request.param
    return chosen


@pytest.fixture
def source(job: Job, plain: Path, tmp_path: Path) -> Path:
    """What the job starts from."""
    return plain if job is compress else compress(plain, tmp_path / "compressed").path


def test_a_finished_output_is_never_touched(job: Job, source: Path, tmp_path: Path) -> None:
    out = job(source, tmp_path / "out").path
    before = tree(tmp_path)
    with pytest.raises(OutputExists, match="never overwritten"):
        job(source, out)
    assert tree(tmp_path) == before


def test_a_directory_with_something_in_it_is_an_output_that_exists(
    job: Job, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").write_text("mine")
    with pytest.raises(OutputExists):
        job(source, tmp_path / "out")
    assert tree(tmp_path / "out") == {"note": b"mine"}


def test_an_empty_directory_is_filled(job: Job, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (job(source, tmp_path / "out").path / "config.json").exists()


def test_an_output_inside_its_input(job: Job, source: Path) -> None:
    before = tree(source)
    for out in (source / "out", source / "a" / "b", source / ".." / source.name / "c"):
        with pytest.raises(UsageError, match="inside"):
            job(source, out)
    assert tree(source) == before


def test_the_input_itself(job: Job, source: Path) -> None:
    before = tree(source)
    with pytest.raises(UsageError):
        job(source, source)
    assert tree(source) == before


@pytest.mark.parametrize("job", [compress, decompress])
def test_an_input_where_the_output_is_prepared(job: Job, plain: Path, tmp_path: Path) -> None:
    source = tmp_path / "out.partial"
    if job is compress:
        plain.rename(source)
    else:
        compress(plain, tmp_path / "c").path.rename(source)
    before = tree(source)
    with pytest.raises(UsageError, match="prepared"):
        job(source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"single file|prepared"):
        job(source / "model.safetensors", tmp_path / "out")
    (tmp_path / "x.safetensors.partial").mkdir()
    inside = tmp_path / "x.safetensors.partial" / "model.safetensors"
    inside.write_bytes(before["model.safetensors"])
    with pytest.raises(UsageError, match="prepared"):
        job(inside, tmp_path / "x.safetensors")
    assert tree(source) == before
    assert tree(inside.parent) == {"model.safetensors": before["model.safetensors"]}


def test_an_output_without_a_name(
    job: Job, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="name"):
        job(source, ".")


def test_another_jobs_partial_output(job: Job, source: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", [{"w": gaussian((64, 64), seed=1)}])
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / ".tersor-job.json").write_text('{"job": "compress", "source": "/elsewhere"}')
    (partial / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    before = tree(partial)
    with pytest.raises(UsageError, match="another job"):
        job(source, tmp_path / "out")
    assert tree(partial) == before


def test_a_changed_input_is_another_job(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.pipeline import output

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(output.Output, "finish_directory", killed)
        compress(plain, tmp_path / "out")
    assert (tmp_path / "out.partial" / "model.safetensors").exists()
    os.utime(plain / "model.safetensors", ns=(1, 1))
    with pytest.raises(UsageError, match="another job"):
        compress(plain, tmp_path / "out")


def test_two_runs_at_once(job: Job, source: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with (partial / ".tersor-job.json").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another tersor"):
            job(source, tmp_path / "out")
        assert sorted(tree(partial)) == [".tersor-job.json"]
    assert job(source, tmp_path / "out").path.exists()
    assert not partial.exists()


def test_two_runs_at_once_for_real(plain: Path, tmp_path: Path) -> None:
    """A second job started from within the first."""
    raised = []

    def meddle(_: object) -> None:
        with pytest.raises(UsageError, match="another tersor"):
            compress(plain, tmp_path / "out")
        raised.append(True)

    compress(plain, tmp_path / "out", on_progress=meddle)
    assert raised
    assert not (tmp_path / "out.partial").exists()


def test_a_file_in_the_way(job: Job, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "out", tmp_path / "file"):
        with pytest.raises(UsageError):
            job(source, out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_place(job: Job, source: Path, tmp_path: Path) -> None:
    place = tmp_path / "readonly"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        if os.geteuid() == 0:
            pytest.skip("root, and not allowed to mount: nothing is read-only here")
        place.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            job(source, place / "out")
        assert not list(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=False, capture_output=True)
        place.chmod(0o700)


def test_compressing_twice_and_restoring_nothing(plain: Path, tmp_path: Path) -> None:
    made = compress(plain, tmp_path / "c").path
    with pytest.raises(UsageError, match="compressed already"):
        compress(made, tmp_path / "cc")
    with pytest.raises(NotTersor):
        decompress(plain, tmp_path / "d")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["c", "plain"]


@pytest.mark.parametrize("name", ["out", "out.bin"])
def test_a_file_becomes_a_file(plain: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="single file"):
        compress(plain / "model.safetensors", tmp_path / name)
    made = compress(plain / "model.safetensors", tmp_path / "c.safetensors").path
    with pytest.raises(UsageError, match="single file"):
        decompress(made, tmp_path / name)


def test_a_damaged_input_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    file = plain / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        compress(plain, tmp_path / "out")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plain"]
