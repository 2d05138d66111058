"""`tersor verify`: decode everything, compare hashes, and with an original at hand every bit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tersor.codec.proof import proven_sha256
from tersor.codec.quantized.dequantize import weight_sha256
from tersor.codec.quantized.parts import proven_matrix
from tersor.codec.stored import read_packed, read_parts
from tersor.format.checkpoint import Checkpoint, open_checkpoint
from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.errors import FormatError, HashMismatch, UsageError, VerificationError
from tersor.format.manifest import TensorEntry
from tersor.format.shard import Shard
from tersor.format.validate import Compressed, check_compressed, is_compressed
from tersor.pipeline.progress import OnProgress, Progress, silent
from tersor.pipeline.source import local_path

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Failure:
    """One tensor that is not what it claims to be."""

    tensor: str
    error: str
    message: str


@dataclass(frozen=True)
class VerifyResult:
    """The outcome: every tensor was decoded and hashed, `failures` are those that did not hold.

    Of `tensors` so many are `quantized`: proven to be what was made then, but not an original's bits.
    """

    path: Path
    against: Path | None
    tensors: int
    quantized: int
    original_bytes: int
    failures: tuple[Failure, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every tensor holds."""
        return not self.failures


def verify(
    model: str | Path, *, against: str | Path | None = None, on_progress: OnProgress = silent
) -> VerifyResult:
    """Prove that the compressed `model` decodes to what its manifest says, and to the model `against`.

    Decodes every tensor, compares its SHA-256, and encodes it again to find bits flipped in
    padding. With `against` every tensor that is not quantised is also compared with the original's
    bytes, and the two must hold the same names, dtypes and shapes. Raises a FormatError when the headers already
    break a rule; what is wrong with single tensors is collected in the result.
    """
    started = time.monotonic()
    compressed = check_compressed(open_checkpoint(local_path(str(model))))
    original = open_checkpoint(local_path(str(against))) if against is not None else None
    if original is not None and is_compressed(original):
        raise UsageError(f"{original.path}: is compressed itself; give the original model to compare with")
    failures = list(_compare_headers(compressed, original)) if original is not None else []
    extents = {name: shard for shard, name in original.tensors()} if original is not None else {}
    total = sum(entry.nbytes for entry in compressed.entries.values())
    done = stored = 0
    for name, entry in compressed.in_file_order():
        try:
            verify_tensor(compressed, name, entry, extents.get(name))
        except (FormatError, VerificationError) as error:
            failures.append(Failure(name, type(error).__name__, str(error)))
        done += entry.nbytes
        stored += compressed.stored_bytes(name)
        on_progress(Progress(name, done, total, stored))
    return VerifyResult(
        compressed.checkpoint.path,
        original.path if original is not None else None,
        len(compressed.entries),
        sum(entry.parameters is not None for entry in compressed.entries.values()),
        total,
        tuple(failures),
        time.monotonic() - started,
    )


def verify_tensor(model: Compressed, name: str, entry: TensorEntry, original: Shard | None = None) -> None:
    """Raise unless tensor `name` decodes to the stated hash, and to the bytes in `original` if given.

    A quantised tensor is not compared with an original's bytes: it was changed on purpose.
    """
    where = model.where(name)
    if entry.parameters is not None:
        found = weight_sha256(proven_matrix(entry, read_parts(model, name, entry), where))
        _compare_hash(found, entry, where)
        return
    data = original.read(name) if original is not None else None
    if entry.codec == CODEC_HUFFMAN:
        packed = read_packed(model, name, entry)
        at = 0

        def compare(piece: U8) -> None:
            nonlocal at
            if data is not None and not np.array_equal(piece, data[at : at + piece.size]):
                raise HashMismatch(f"{where}: is not bit for bit the original's")
            at += piece.size

        sha256 = proven_sha256(packed, where, compare)
    else:
        stored = model.shard_of[name].read(name)
        if data is not None and not np.array_equal(stored, data):
            raise HashMismatch(f"{where}: is not bit for bit the original's")
        sha256 = hashlib.sha256(stored.data).hexdigest()
    _compare_hash(sha256, entry, where)


def _compare_hash(sha256: str, entry: TensorEntry, where: str) -> None:
    if sha256 != entry.sha256:
        raise HashMismatch(
            f"{where}: decodes to SHA-256 {sha256[:16]}…, the manifest says {entry.sha256[:16]}…; the file is damaged, "
            f"copy or download it again"
        )


def _compare_headers(model: Compressed, original: Checkpoint) -> Iterator[Failure]:
    theirs = {name: shard.tensors[name] for shard, name in original.tensors()}
    for name, entry in model.entries.items():
        if name not in theirs:
            yield Failure(name, "ExtraTensor", f"tensor {name!r}: {original.path} has no such tensor")
        elif (theirs[name].dtype, theirs[name].shape) != (entry.dtype, entry.shape):
            have = f"{theirs[name].dtype} {list(theirs[name].shape)}"
            yield Failure(name, "WrongShape", f"tensor {name!r}: {original.path} has it as {have}")
    for name in theirs.keys() - model.entries.keys():
        yield Failure(
            name, "MissingTensor", f"tensor {name!r}: is in {original.path} and not in the compressed model"
        )
