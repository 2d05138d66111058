"""An output that appears whole or not at all.

Everything is written into `OUT.partial`, which no software takes for a model: config.json comes
last. When all is there it is renamed to `OUT`. A job file in it names the job (its input, its
options), so that a second run of the same job resumes and a different one refuses; a lock on
that file keeps two runs apart.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tersor.format.errors import Interrupted, OutputExists, UsageError

JOB_FILE = ".tersor-job.json"
_SCRATCH = ".tersor-scratch"


def partial_of(final: Path) -> Path:
    """Where an output is written before it appears at `final`."""
    if not final.name:
        raise UsageError(f"{final}: has no name to put a new directory under; choose another output")
    return final.with_name(final.name + ".partial")


class Output:
    """The output of one job, open for writing under `partial`."""

    def __init__(self, final: Path, job: Mapping[str, Any]) -> None:
        """Refuse a finished `final`, then create or take up `final`.partial for this `job`."""
        self.final = final
        self.identity = json.dumps(job, sort_keys=True)
        if final.exists() and not (final.is_dir() and not any(final.iterdir())):
            if final.is_file() and (partial_of(final) / JOB_FILE).exists():
                _remove_leftovers(final)
            if (final / JOB_FILE).exists():  # the job was killed after its very last step but one
                shutil.rmtree(final / _SCRATCH, ignore_errors=True)
                (final / JOB_FILE).unlink(missing_ok=True)
            raise OutputExists(
                f"{final}: exists already and is never overwritten; delete it or choose another name"
            )
        self.partial = partial_of(final)
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._check_job()
        except OSError as error:
            raise UsageError(
                f"{self.partial}: cannot be written ({error.strerror}); choose another output"
            ) from error

    @property
    def scratch(self) -> Path:
        """A folder for what a job keeps until its output appears; not there before the job makes it."""
        return self.partial / _SCRATCH

    def finish_directory(
        self, config: Mapping[str, Any], index: Mapping[str, Any] | None, index_name: str
    ) -> None:
        """Write the JSON files, config last, and rename the directory into place."""
        if index is not None:
            _write_json(self.partial / index_name, index)
        _write_json(self.partial / "config.json", config)
        _sync_directory(self.partial)
        self.partial.rename(self.final)
        shutil.rmtree(self.final / _SCRATCH, ignore_errors=True)
        # Only now: without its job file a partial directory could be taken up by another job.
        (self.final / JOB_FILE).unlink()
        _sync_directory(self.final.parent)
        self._lock.close()

    def finish_file(self, name: str) -> None:
        """Put the one file `name` into place, which must still be free, and remove the directory."""
        try:
            os.link(self.partial / name, self.final)  # unlike a rename it never replaces a file
        except FileExistsError:
            raise OutputExists(f"{self.final}: has appeared meanwhile and is never overwritten") from None
        except OSError:  # a file system without links
            (self.partial / name).rename(self.final)
        _sync_directory(self.final.parent)
        self._lock.close()
        shutil.rmtree(self.partial)

    def carry_over(self, source: Path, files: list[Path]) -> None:
        """Copy `files`, relative to `source`, unchanged."""
        for file in files:
            if file.name == JOB_FILE:
                continue
            target = self.partial / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target)

    def close(self) -> None:
        """Let go of the lock; what was written stays for a resume."""
        self._lock.close()

    def _take_lock(self) -> IO[bytes]:
        file = (self.partial / JOB_FILE).open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UsageError(
                f"{self.partial}: another tersor is writing there; wait for it or stop it"
            ) from error
        return file

    def _check_job(self) -> None:
        self._lock.seek(0)
        found, wanted = self._lock.read(), self.identity.encode("utf-8")
        if not found:
            strangers = sorted(p.name for p in self.partial.iterdir() if p.name != JOB_FILE)
            if strangers:
                self._lock.close()
                (self.partial / JOB_FILE).unlink()
                raise UsageError(
                    f"{self.partial}: is there already and is no work of tersor's (it holds {strangers[0]!r}); move it "
                    f"away, or choose another output"
                )
            if self._lock.write(wanted) != len(wanted):
                self._lock.truncate(0)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif found != wanted:
            self._lock.close()
            raise UsageError(
                f"{self.partial}: was left by another job (other input, options or format version); delete it to start "
                f"afresh, or choose another output"
            )


def _remove_leftovers(final: Path) -> None:
    """Remove the partial directory of a single file that is in place: the job was killed just then."""
    partial = partial_of(final)
    for inside in partial.iterdir():
        if inside.is_file() and inside.samefile(final):
            shutil.rmtree(partial)
            return


@contextmanager
def resumable(output: Output) -> Iterator[None]:
    """Turn a failed write into an error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise Interrupted(
            f"{error.filename or output.partial}: {error.strerror or error}. What is done is kept in "
            f"{output.partial}; mend the cause and run the same command again to go on from there"
        ) from error
    finally:
        output.close()


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all: where there is a config.json, there is all of it, and of everything else."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
