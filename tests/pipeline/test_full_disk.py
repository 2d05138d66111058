"""A disk that runs full, at every size: an error that says how to go on, and going on ends the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crafting import gaussian, tree, write_model
from tersor.format.errors import Interrupted, UsageError
from tersor.pipeline.compress import compress
from tersor.pipeline.decompress import decompress


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A small disk: call it with a size in KiB to make it, or to give it another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(kib: int) -> Path:
        options = f"size={kib}k" if not place.is_mount() else f"remount,size={kib}k"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("not allowed to mount a small disk")
        return place

    yield resize
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shards = [{f"w{i}{j}": gaussian((64, 128), seed=2 * i + j) for j in range(2)} for i in range(2)]
    return write_model(tmp_path_factory.mktemp("full") / "plain", shards)


@pytest.mark.parametrize("job", [compress, decompress])
def test_a_disk_of_any_size(
    job: Callable[..., Any], plain: Path, tmp_path: Path, disk: Callable[[int], Path]
) -> None:
    source = plain if job is compress else compress(plain, tmp_path / "c").path
    undisturbed = tree(job(source, tmp_path / "undisturbed").path)
    interrupted = 0
    for kib in range(4, 4 * 40, 4):
        out = disk(kib) / "out"
        try:
            job(source, out)
        except Interrupted as error:
            interrupted += 1
            assert "No space left" in str(error)
            assert "again" in str(error)
        except UsageError as error:
            assert "No space left" in str(error)  # not even room for the directory
        else:
            break
        assert not out.exists()
        disk(4096)
        job(source, out)
        assert tree(out) == undisturbed
        shutil.rmtree(out)
        assert not list(out.parent.iterdir())
    assert interrupted > 10


def test_a_limit_on_file_sizes(plain: Path, tmp_path: Path) -> None:
    """The same through the command line and without root: exit status 5, then 0."""
    program = [
        sys.executable,
        "-c",
        "from tersor.cli import main; main()",
        "compress",
        str(plain),
        str(tmp_path / "out"),
    ]
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *program]
    first = subprocess.run(limited, check=False, capture_output=True, text=True)
    assert first.returncode == 5, first.stderr
    assert "Interrupted" in first.stderr
    assert "File too large" in first.stderr
    assert "Traceback" not in first.stderr
    assert not first.stdout
    assert not (tmp_path / "out").exists()
    second = subprocess.run(program, check=False, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert tree(tmp_path / "out") == tree(compress(plain, tmp_path / "undisturbed").path)
