"""Quantised matrices on disk while a job runs, so that a killed job goes on where it stopped.

One safetensors file per matrix, renamed into place when whole, beside `job.json`, which names the job:
settings, calibration tokens, model. A job that differs refuses the folder instead of mixing results.
This is scratch, not the checkpoint format.
"""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.matrix import Quantized
from tersor.format.errors import UsageError

Result = Quantized | Integers


class Store:
    """A folder of finished matrices of one job; `job` is any JSON value that identifies it."""

    def __init__(self, folder: str | Path, job: Any) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = json.dumps(job, sort_keys=True)
        marker = self.folder / "job.json"
        if marker.exists() and marker.read_text() != wanted:
            raise UsageError(f"{self.folder} holds the start of another job; remove it, or repeat that job")
        _replace(marker, lambda path: path.write_text(wanted))

    def put(self, name: str, q: Result) -> None:
        """Keep a finished matrix."""
        values = {field.name: getattr(q, field.name) for field in fields(q)}
        arrays = {key: np.ascontiguousarray(x) for key, x in values.items() if isinstance(x, np.ndarray)}
        plain = {key: x for key, x in values.items() if key not in arrays}
        header = {"name": name, "kind": type(q).__name__, "plain": json.dumps(plain)}
        _replace(self._path(name), lambda path: save_file(arrays, path, header))

    def get(self, name: str) -> Result | None:
        """A finished matrix, or None when there is none (yet)."""
        path = self._path(name)
        if not path.exists():
            return None
        with safe_open(path, "numpy") as file:
            header = file.metadata()
            values: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        values |= json.loads(header["plain"])
        return Integers(**values) if header["kind"] == Integers.__name__ else Quantized(**values)

    def holds(self, name: str) -> bool:
        """Whether there is a finished matrix of this name."""
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        # tensor names may be longer than file names and differ only in case
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"


def _replace(path: Path, write: Any) -> None:
    scratch = path.with_suffix(".part")
    try:
        write(scratch)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(errno.EIO, str(error), str(path)) from error
    scratch.replace(path)
