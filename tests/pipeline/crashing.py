"""Kill jobs and see what is left. A script of its own: it forks, and so may not share a process with threads.

    python crashing.py steps|moments compress|decompress SOURCE SCRATCH

`steps` kills a job at its first file operation, then a fresh one at its second, and so on to the
last, each time finishing it by a second run. `moments` kills at random times, inside writes and
the codec too, and goes on from what is left until the job is done. After each kill nothing that
loads may lie at the output, and in the end it must hold the very bytes of an undisturbed run.
Prints the number of kills.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TERSOR_THREADS"] = "1"  # this process must stay without threads to be forked safely

sys.path.insert(0, str(Path(__file__).parents[1]))
from crafting import gaussian_bytes, tree
from tersor.codec import encode
from tersor.codec.proof import equals
from tersor.format.errors import OutputExists
from tersor.pipeline.compress import compress
from tersor.pipeline.decompress import decompress

Job = Callable[[Path], None]

_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile", "fcntl.flock"}


def start(job: Job, out: Path, kill_at: int = 0) -> int:
    """Fork a child that runs the job, and kills itself just before file operation number `kill_at`; its id."""
    child = os.fork()
    if child:
        return child
    left = kill_at

    def count(event: str, _: object) -> None:
        nonlocal left
        if event in _OPERATIONS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(count)
    try:
        job(out)
        os._exit(0)
    except OutputExists:
        os._exit(9)
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)


def finished(child: int) -> bool:
    """Wait for a child: True if it did its job (or found it done), False if it was killed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) in (0, 9), "the job failed"
    return True


def partial(out: Path) -> Path:
    """Where an unfinished job works."""
    return out.with_name(out.name + ".partial")


def check_left(out: Path, reference: dict[str, bytes]) -> None:
    """What a kill left: the output whole, or nothing there, and no config.json before all shards."""
    if out.exists():
        found = tree(out)
        found.pop(".tersor-job.json", None)
        assert found == reference
    elif (partial(out) / "config.json").exists():
        found = tree(partial(out))
        assert {f: b for f, b in found.items() if f != ".tersor-job.json"} == reference


def check_done(out: Path, reference: dict[str, bytes]) -> None:
    """The job is done: the reference's bytes, and nothing beside them."""
    found = tree(out)
    assert found.keys() == reference.keys(), found.keys() ^ reference.keys()
    assert found == reference
    assert not partial(out).exists()
    shutil.rmtree(out)


def kill_at_steps(job: Job, out: Path, reference: dict[str, bytes]) -> int:
    """Kill before the n-th file operation, for every n; returns how many there were."""
    for n in range(1, 10_000):
        done = finished(start(job, out, n))
        check_left(out, reference)
        assert finished(start(job, out)), "not killed"
        check_done(out, reference)
        if done:
            return n - 1
    raise AssertionError("the job never ends")


def kill_at_moments(job: Job, out: Path, reference: dict[str, bytes], seconds: float, kills: int) -> int:
    """Kill at random times until so many kills were made and a job is done."""
    rng = random.Random(0)
    made = 0
    while made < kills:
        done = False
        while not done:
            child = start(job, out)
            time.sleep(rng.uniform(0, 1.2 * seconds))
            os.kill(child, signal.SIGKILL)
            done = finished(child)
            made += not done
            check_left(out, reference)
            done = done or out.exists()
        finished(start(job, out))  # may find it done; sweeps up a job file left at the last moment
        check_done(out, reference)
    return made


def main(mode: str, what: str, source: Path, scratch: Path) -> None:
    """Run one mode for one kind of job; a failed check ends with a traceback."""

    def job(out: Path) -> None:
        (compress if what == "compress" else decompress)(source, out)

    for dtype in ("BF16", "F16"):  # compiled code is loaded before the fork
        data = gaussian_bytes((64, 64), dtype)
        assert equals(encode(data, dtype, (64, 64)), data)
    undisturbed = scratch / "undisturbed"
    started = time.monotonic()
    assert finished(start(job, undisturbed))
    seconds = time.monotonic() - started
    reference = tree(undisturbed)
    out = scratch / "out"
    if mode == "steps":
        print(kill_at_steps(job, out, reference))
    else:
        print(kill_at_moments(job, out, reference, seconds, 20))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
