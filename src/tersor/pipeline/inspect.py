"""`tersor inspect`: what is stored for a model, and how good the code of one tensor is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tersor.codec import decode, histogram
from tersor.codec.quantized.integers import Integers
from tersor.codec.quantized.matrix import Bits as Bits  # the command line takes it from here
from tersor.codec.quantized.parts import from_parts
from tersor.codec.stored import read_packed, read_parts
from tersor.format.checkpoint import open_checkpoint
from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.dtypes import BITS, RAW_BYTES
from tersor.format.errors import UsageError
from tersor.format.layout import Grid, stored_tensors
from tersor.format.manifest import TensorEntry
from tersor.format.parameters import Parameters
from tersor.format.validate import Compressed, check_compressed
from tersor.pipeline.source import local_path
from tersor.pipeline.stored_form import split_bits

WINDOW = 8  # exponents that a 3-bit code can name


@dataclass(frozen=True)
class TensorSummary:
    """One tensor from headers alone."""

    name: str
    codec: str
    dtype: str
    shape: tuple[int, ...]
    original_bytes: int
    stored_bytes: int
    bits: Bits | None  # of a quantised tensor, by what they hold

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, everything counted."""
        elements = math.prod(self.shape)
        return 8 * self.stored_bytes / elements if elements else 0.0


@dataclass(frozen=True)
class ModelSummary:
    """A compressed model from headers alone."""

    path: Path
    tensors: tuple[TensorSummary, ...]

    @property
    def original_bytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(t.original_bytes for t in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors now."""
        return sum(t.stored_bytes for t in self.tensors)

    @property
    def quantized_bits(self) -> Bits:
        """Of all quantised tensors together."""
        return sum((t.bits for t in self.tensors if t.bits is not None), Bits(0, 0, 0, 0))


@dataclass(frozen=True)
class TensorReport:
    """One tensor decoded and measured; all `bits` are per weight."""

    summary: TensorSummary
    sha256: str
    tiles: int
    code_lengths: dict[int, int]  # symbol -> length of its code, used symbols only
    counts: dict[int, int]  # symbol -> how often it occurs
    symbol_entropy_bits: float  # Shannon entropy of the coded symbol
    code_bits: float  # what the Huffman code spends on it
    raw_bits: float  # stored as they are: sign and mantissa
    index_bits: float  # offsets, stream lengths, padding, book
    outside_window: float  # share of the weights outside the best 8 consecutive exponents (bf16, fp32)

    @property
    def bound_bits(self) -> float:
        """The entropy bound: symbols at their entropy, the rest as it is."""
        return self.symbol_entropy_bits + self.raw_bits


@dataclass(frozen=True)
class QuantizedReport:
    """One quantised tensor, read and measured; bits are per weight."""

    summary: TensorSummary
    sha256: str
    parameters: Parameters
    code_entropy_bits: float  # Shannon entropy of the codes
    outliers: float  # share of the weights
    counts: dict[int, int]  # code -> how often it occurs


def inspect_model(model: str | Path) -> ModelSummary:
    """What every tensor of the compressed `model` takes; reads headers only."""
    compressed = check_compressed(open_checkpoint(local_path(str(model))))
    return ModelSummary(
        compressed.checkpoint.path,
        tuple(_summary(compressed, name, entry) for name, entry in compressed.in_file_order()),
    )


def inspect_tensor(model: str | Path, name: str) -> TensorReport | QuantizedReport:
    """Decode the tensor `name` of the compressed `model` and measure its code."""
    compressed = check_compressed(open_checkpoint(local_path(str(model))))
    entry = compressed.entries.get(name)
    if entry is None:
        close = [n for n in compressed.entries if name in n][:3]
        hint = f"; did you mean {', '.join(close)}?" if close else "; `tersor inspect DIR` lists them"
        raise UsageError(f"{compressed.checkpoint.path}: there is no tensor {name!r}{hint}")
    summary = _summary(compressed, name, entry)
    if entry.parameters is not None:
        return _quantized_report(compressed, name, entry, summary)
    if entry.codec != CODEC_HUFFMAN:
        bits = float(BITS[entry.dtype])
        return TensorReport(summary, entry.sha256, 0, {}, {}, 0.0, 0.0, bits, 0.0, 0.0)
    packed = read_packed(compressed, name, entry)
    counts = histogram(decode(packed, compressed.where(name)), entry.dtype)
    code_bits = float((counts * packed.book).sum() / packed.elements)
    raw_bits = 8.0 * RAW_BYTES[entry.dtype]
    used = np.flatnonzero(counts)
    return TensorReport(
        summary,
        entry.sha256,
        Grid.of(entry.shape).tiles,
        {int(s): int(packed.book[s]) for s in used},
        {int(s): int(counts[s]) for s in used},
        entropy_bits(counts),
        code_bits,
        raw_bits,
        summary.bits_per_weight - code_bits - raw_bits,
        outside_window(counts) if entry.dtype in ("BF16", "F32") else 0.0,
    )


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Shannon entropy, in bits, of the distribution with these counts."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0


def outside_window(counts: NDArray[np.int64], width: int = WINDOW) -> float:
    """Share of the elements whose symbol lies outside the best run of `width` consecutive symbols."""
    inside = np.convolve(counts, np.ones(width, np.int64)).max()
    return float(1 - inside / counts.sum())


def _summary(model: Compressed, name: str, entry: TensorEntry) -> TensorSummary:
    bits = None
    if entry.parameters is not None:
        parts = [part.name for part in stored_tensors(name, entry)]
        bits = split_bits(
            name, entry, {p: model.shard_of[p].tensors[p].nbytes for p in parts if p in model.shard_of}
        )
    stored = model.stored_bytes(name)
    return TensorSummary(name, entry.codec, entry.dtype, entry.shape, entry.nbytes, stored, bits)


def _quantized_report(
    model: Compressed, name: str, entry: TensorEntry, summary: TensorSummary
) -> QuantizedReport:
    q = from_parts(entry, read_parts(model, name, entry), model.where(name))
    shift = 128 if isinstance(q, Integers) else 0
    counts = np.bincount(q.codes.reshape(-1).astype(np.int64) + shift, minlength=256)
    assert entry.parameters is not None
    return QuantizedReport(
        summary,
        entry.sha256,
        entry.parameters,
        entropy_bits(counts),
        q.outliers / q.codes.size,
        {int(code) - shift: int(counts[code]) for code in np.flatnonzero(counts)},
    )
