"""`tersor plan`: what a model would take, from headers only: which codec, which GPU, which context.

Nothing but headers is read, also on the Hub (a few range requests), so planning for a 400 GB
model takes seconds. Compressed sizes are estimates until a model is compressed: the bits per
weight below are what trained models took (dev/BENCHMARKS.md), everything counted, and they vary
by a percent or two between models. Near-lossless are the sizes of `--bits 4` and `--bits 3`:
matrices inside blocks, known by a number in their name, take these bits, all else is lossless.
The KV cache is exact for the usual attention with grouped keys and values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.format.checkpoint import Checkpoint, open_checkpoint
from tersor.format.constants import MANIFEST_KEY
from tersor.format.dtypes import QUANTIZABLE, nbytes
from tersor.format.layout import wants_compression
from tersor.format.manifest import TensorEntry, parse_manifest
from tersor.format.validate import check_compressed, is_compressed
from tersor.pipeline.source import hub_access, local_path, looks_like_hub_id

# Bits per weight of the huffman codec, index and tables counted: BF16 and F16 as trained models took
# (dev/BENCHMARKS.md), the others as a Gaussian matrix takes (float8 scaled to its range row by row).
HUFFMAN_BITS: Mapping[str, float] = {"BF16": 10.8, "F16": 13.5, "F32": 26.7, "F8_E4M3": 6.7, "F8_E5M2": 5.7}

# Bits per weight of the blocks' matrices under the settings that `compress --bits` takes by default.
NEAR_LOSSLESS_BITS: Mapping[str, float] = {"4-bit": 4.64, "3-bit": 3.71}
_LEAST_OUTPUTS = 32  # rows below which a matrix is a router or gate, and stays lossless
_NUMBERED = re.compile(r"\.\d+\.")

# Memory of common GPUs, in GB (1e9 bytes) as sold; a little is lost to driver and runtime.
GPUS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
RUNTIME_BYTES = 10**9  # CUDA context, workspace, activations of one token
_KV_BYTES = 2  # the cache is bfloat16


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as a header tells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class SizePlan:
    """One way to hold the weights: its bytes, and for how many tokens each GPU has room then."""

    codec: str
    weight_bytes: int
    bits_per_weight: float
    exact: bool  # measured from a compressed model rather than estimated
    total_bytes: int  # weights, KV cache of the asked context, runtime
    fits_gb: int | None  # the smallest common GPU that holds the total
    fits_asked: bool | None  # whether the total fits the asked GPU; None without one
    context_on_gpu: int | None  # tokens that fit there; None where the cache's size is not known


@dataclass(frozen=True)
class Plan:
    """The answer to `tersor plan`."""

    model: str
    parameters: int
    context: int
    kv_bytes_per_token: int
    gpu_bytes: int | None
    sizes: tuple[SizePlan, ...]


def plan(
    model: str | Path, *, gpu_bytes: int | None = None, context: int = 2048, revision: str | None = None
) -> Plan:
    """Sizes of `model` (directory, file or Hub id) as it is and compressed, for `context` tokens of one sequence."""
    if looks_like_hub_id(str(model)):
        headers, config, measured = _hub_headers(str(model), revision)
    else:
        headers, config, measured = _local_headers(open_checkpoint(local_path(str(model))))
    kv = kv_bytes_per_token(config)
    original = sum(h.nbytes for h in headers)
    parameters = sum(math.prod(h.shape) for h in headers)
    ways = [("as it is", original, True)]
    if measured is None:
        ways.append(("lossless", sum(_lossless_bytes(h) for h in headers), False))
        if any(_is_matrix(h) for h in headers):
            ways += [
                (w, sum(_near_bytes(h, b) for h in headers), False) for w, b in NEAR_LOSSLESS_BITS.items()
            ]
    else:
        ways.append((*measured, True))
    sizes = tuple(
        _size(codec, weights, exact, parameters, kv, context, gpu_bytes) for codec, weights, exact in ways
    )
    return Plan(str(model), parameters, context, kv, gpu_bytes, sizes)


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Bytes that one token of one sequence adds to the KV cache; 0 if the config does not tell."""
    text = config.get("text_config") or config
    if text.get("kv_lora_rank"):  # latent attention: what is cached depends on the implementation
        return 0
    layers = _first(text, "num_hidden_layers", "n_layer", "num_layers")
    heads = _first(text, "num_attention_heads", "n_head")
    hidden = _first(text, "hidden_size", "n_embd", "d_model")
    if not layers or not heads or not hidden:
        return 0
    one_head = text.get("multi_query") and not text.get("new_decoder_architecture")  # Falcon, GPT-BigCode
    kv_heads = 1 if one_head else _first(text, "num_key_value_heads", "num_kv_heads") or heads
    head_dim = text.get("head_dim") or hidden // heads
    return int(2 * layers * kv_heads * head_dim * _KV_BYTES)


def _first(config: Mapping[str, Any], *names: str) -> int:
    return next((int(config[n]) for n in names if isinstance(config.get(n), int)), 0)


def _lossless_bytes(header: TensorHeader) -> int:
    if not wants_compression(header.dtype, header.shape):
        return header.nbytes
    return int(math.prod(header.shape) * HUFFMAN_BITS[header.dtype] / 8)


def _is_matrix(header: TensorHeader) -> bool:
    """Whether a tensor looks like a matrix of a block that is worth quantising."""
    return (
        header.dtype in QUANTIZABLE
        and len(header.shape) >= 2
        and header.shape[-2] >= _LEAST_OUTPUTS
        and wants_compression(header.dtype, header.shape)
        and _NUMBERED.search(header.name) is not None
    )


def _near_bytes(header: TensorHeader, bits: float) -> int:
    return int(math.prod(header.shape) * bits / 8) if _is_matrix(header) else _lossless_bytes(header)


def _size(
    codec: str, weights: int, exact: bool, parameters: int, kv: int, context: int, gpu_bytes: int | None
) -> SizePlan:
    total = weights + kv * context + RUNTIME_BYTES
    fits = next((gb for gb in GPUS_GB if total <= gb * 10**9), None)
    fits_asked = tokens = None
    if gpu_bytes is not None:
        fits_asked = total <= gpu_bytes
        tokens = max(0, gpu_bytes - weights - RUNTIME_BYTES) // kv if kv else None
    bits = 8 * weights / parameters if parameters else 0.0
    return SizePlan(codec, weights, bits, exact, total, fits, fits_asked, tokens)


_Measured = tuple[str, int]  # what a compressed model is, and the bytes it takes


def _local_headers(
    source: Checkpoint,
) -> tuple[list[TensorHeader], Mapping[str, Any], _Measured | None]:
    if not is_compressed(source):
        headers = [
            _header(name, s.tensors[name].dtype, s.tensors[name].shape) for s, name in source.tensors()
        ]
        return headers, source.config or {}, None
    model = check_compressed(source)
    headers = [_header(name, e.dtype, e.shape) for name, e in model.entries.items()]
    stored = sum(model.stored_bytes(name) for name in model.entries)
    return headers, source.config or {}, (_kind(model.entries), stored)


def _hub_headers(
    model: str, revision: str | None
) -> tuple[list[TensorHeader], Mapping[str, Any], _Measured | None]:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    with hub_access(model):
        found = get_safetensors_metadata(model, revision=revision)
        config = json.loads(Path(hf_hub_download(model, "config.json", revision=revision)).read_text("utf-8"))
    files: list[Any] = list(found.files_metadata.values())
    headers = [_header(name, t.dtype, tuple(t.shape)) for f in files for name, t in f.tensors.items()]
    if not any(MANIFEST_KEY in (f.metadata or {}) for f in files):
        return headers, config, None
    entries = {name: e for f in files for name, e in parse_manifest(f.metadata or {}, model).items()}
    stored = sum(header.nbytes for header in headers)
    return [_header(name, e.dtype, e.shape) for name, e in entries.items()], config, (_kind(entries), stored)


def _kind(entries: Mapping[str, TensorEntry]) -> str:
    """What a compressed model is."""
    return "near-lossless" if any(e.parameters is not None for e in entries.values()) else "lossless"


def _header(name: str, dtype: str, shape: tuple[int, ...]) -> TensorHeader:
    return TensorHeader(name, dtype, shape, nbytes(dtype, math.prod(shape)))
