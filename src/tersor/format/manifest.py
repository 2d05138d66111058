"""The manifest: what the tensors of a shard were before they were compressed.

It lives in the shard's own `__metadata__`, under one key, so that a shard describes itself
and everything can be learnt from headers alone (`plan` and `inspect` never read data).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tersor.format import strict_json
from tersor.format.constants import CODEC_HUFFMAN, CODEC_RAW, FORMAT_VERSION, MANIFEST_KEY
from tersor.format.dtypes import BITS, QUANTIZABLE, RAW_BYTES, is_shape, nbytes
from tersor.format.errors import BadManifest, UnknownCodec, UnknownDtype, UnknownVersion
from tersor.format.parameters import KINDS, Parameters, dump_parameters, parse_parameters

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as it was: codec now, dtype (safetensors' spelling), shape and SHA-256 of its bytes.

    Of a quantised tensor the SHA-256 is that of what it decodes to, and `parameters` say how.
    """

    codec: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    parameters: Parameters | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the original tensor."""
        return nbytes(self.dtype, math.prod(self.shape))


def dump_manifest(entries: Mapping[str, TensorEntry]) -> str:
    """The value of the metadata key "tersor": compact JSON, names sorted."""
    tensors = {name: dump_entry(entry) for name, entry in sorted(entries.items())}
    return json.dumps({"version": FORMAT_VERSION, "tensors": tensors}, separators=(",", ":"))


def dump_entry(entry: TensorEntry) -> dict[str, object]:
    """One tensor's entry, as JSON data."""
    fields: dict[str, object] = {
        "codec": entry.codec,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "sha256": entry.sha256,
    }
    if entry.parameters is not None:
        fields["parameters"] = dump_parameters(entry.parameters)
    return fields


def parse_manifest(metadata: Mapping[str, str], where: str = "checkpoint") -> dict[str, TensorEntry]:
    """The manifest in a shard's `__metadata__`; `where` names the file in errors."""
    text = metadata.get(MANIFEST_KEY)
    if text is None:
        raise BadManifest(
            f"{where}: no {MANIFEST_KEY!r} key in the safetensors metadata. The file was not written by tersor, "
            f"or a tool that drops metadata rewrote it; compress the original model again"
        )
    try:
        document = strict_json.loads(text)
    except ValueError as error:
        raise BadManifest(
            f"{where}: the manifest is not JSON as it must be ({error}); the file is damaged"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("version"), int):
        raise BadManifest(f"{where}: the manifest has no version; the file is damaged")
    if document["version"] != FORMAT_VERSION:
        raise UnknownVersion(
            f"{where}: format version {document['version']}, and this tersor reads version {FORMAT_VERSION}; "
            f"install a newer tersor"
        )
    tensors = document.get("tensors")
    if not isinstance(tensors, dict):
        raise BadManifest(f"{where}: the manifest lists no tensors; the file is damaged")
    return {name: parse_entry(name, entry, where) for name, entry in tensors.items()}


def parse_entry(name: str, entry: object, where: str) -> TensorEntry:
    """The entry of tensor `name` from JSON data; `where` names the file in errors."""
    wanted = {"codec", "dtype", "shape", "sha256"}
    if isinstance(entry, dict) and entry.get("codec") in tuple(KINDS):
        wanted.add("parameters")
    if not isinstance(entry, dict) or set(entry) != wanted:
        raise BadManifest(
            f"{where}: tensor {name!r}: its manifest entry must be codec, dtype, shape and sha256, and parameters "
            f"if it is quantised"
        )
    codec, dtype, shape, sha256 = entry["codec"], entry["dtype"], entry["shape"], entry["sha256"]
    if not isinstance(codec, str) or not isinstance(dtype, str):
        raise BadManifest(f"{where}: tensor {name!r}: codec and dtype must be strings")
    if codec not in (CODEC_RAW, CODEC_HUFFMAN, *KINDS):
        raise UnknownCodec(
            f"{where}: tensor {name!r}: codec {codec!r} is unknown; is the checkpoint newer than tersor?"
        )
    holds = {CODEC_RAW: tuple(BITS), CODEC_HUFFMAN: tuple(RAW_BYTES)}.get(codec, QUANTIZABLE)
    if dtype not in holds:
        raise UnknownDtype(f"{where}: tensor {name!r}: codec {codec!r} cannot hold dtype {dtype!r}")
    if not is_shape(shape):
        raise BadManifest(f"{where}: tensor {name!r}: shape {shape!r} is not a list of sizes")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BadManifest(f"{where}: tensor {name!r}: sha256 is not 64 hexadecimal digits")
    if codec not in KINDS:
        return TensorEntry(codec, dtype, tuple(shape), sha256)
    parameters = parse_parameters(codec, entry["parameters"], tuple(shape), f"{where}: tensor {name!r}")
    return TensorEntry(codec, dtype, tuple(shape), sha256, parameters)
