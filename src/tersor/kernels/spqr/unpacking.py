"""From the layout back to the arrays that codec `spqr` stores, in torch: `packing`, undone.

Codes, and outliers with their places, lie in the layout as they are and come back bit for bit. Statistics need
not (two levels may have become one, runs been repeated), so whoever wants them keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tersor.format.constants import TILE_COLS
from tersor.format.layout import Grid, row_bytes
from tersor.kernels.fused.layout import ROW_SHIFT, SEGMENT_COLS, STRIP_ROWS
from tersor.kernels.spqr.layout import RECORD_HEAD, SPREAD, Geometry, planes, slots

_CHUNK_WEIGHTS = 1 << 23  # unpacked at a time
_WORD = 4  # bytes


def stored_codes(stages: Tensor, geometry: Geometry) -> Tensor:
    """The codes as stored: uint8 [rows, bits * ceil(cols / 8)] (FORMAT.md section 6)."""
    packed = torch.empty(
        (geometry.rows, row_bytes(geometry.cols, geometry.bits)), dtype=torch.uint8, device=stages.device
    )
    whole = stages.view(geometry.strips, geometry.stages, geometry.stage_bytes)
    step = max(1, _CHUNK_WEIGHTS // (STRIP_ROWS * geometry.padded_cols))
    for first in range(0, geometry.strips, step):
        codes = _codes(whole[first : first + step], geometry)
        own = packed[first * STRIP_ROWS : (first + step) * STRIP_ROWS]
        own.copy_(_pack_rows(codes[: len(own), : geometry.cols], geometry.bits))
    return packed


def stored_outliers(places: Tensor, records: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, places and deltas as stored: uint16 by tile, and binary16's bits (FORMAT.md section 6)."""
    begin = places[:-1].long() * (16 // _WORD)
    words = records.view(torch.int32)
    total = words[begin + RECORD_HEAD // _WORD - 1] >> 16  # the last of the running counts
    record = torch.arange(geometry.records, device=places.device).repeat_interleave(total)
    rank = torch.arange(len(record), device=places.device) - (total.cumsum(0) - total)[record]
    entry = words[begin[record] + RECORD_HEAD // _WORD + rank]
    strip, segment = record // geometry.segments, record % geometry.segments
    column = segment * SEGMENT_COLS + (entry & SEGMENT_COLS - 1)
    tile = strip * Grid(geometry.rows, geometry.cols).tile_cols + column // TILE_COLS
    place = (entry >> ROW_SHIFT & STRIP_ROWS - 1) * TILE_COLS + column % TILE_COLS
    rising = (tile * (STRIP_ROWS * TILE_COLS) + place).argsort()
    counts = torch.bincount(tile, minlength=Grid(geometry.rows, geometry.cols).tiles)
    deltas = (entry >> 16)[rising]
    return _u16(counts), _u16(place[rising]), _u16(deltas)


def _codes(stage: Tensor, geometry: Geometry) -> Tensor:
    """The codes (rows, padded columns) of some strips' stages (strips, stages, bytes)."""
    strips, stages, _ = stage.shape
    lanes = torch.zeros((strips, stages, 2, 32, 32), dtype=torch.uint8, device=stage.device)
    at = low = 0
    for bits in planes(geometry.bits):
        words = _words(stage[:, :, at : at + 256 * bits], bits)
        for element, code in _elements(words, bits):
            lanes[..., element] |= (code << low).to(torch.uint8)
        at, low = at + 256 * bits, low + bits
    #                 strip  stage  h  g  t rho n, pair
    axes = lanes.view(strips, stages, 2, 8, 4, 2, 16)
    return axes.permute(0, 5, 3, 1, 4, 2, 6).reshape(strips * STRIP_ROWS, -1)


def _words(plane: Tensor, bits: int) -> Tensor:
    """A plane's bytes (strip, stage, n), in pieces of four words per lane, as words (strip, stage, h, lane, bits)."""
    strips, stages, _ = plane.shape
    flat = plane.contiguous().view(torch.int32)
    own = flat.new_empty((strips, stages, 32, 2 * bits))
    for i in range(0, 2 * bits, 4):
        n = min(4, 2 * bits - i)
        own[..., i : i + n] = flat[..., 32 * i : 32 * (i + n)].view(strips, stages, 32, n)
    return own.view(strips, stages, 32, 2, bits).transpose(2, 3)


def _elements(words: Tensor, bits: int) -> Iterator[tuple[int, Tensor]]:
    """A lane's 32 codes in a plane, each with its number (rho, n, pair)."""
    for pair in range(2):
        for s in slots(bits):
            yield 16 * s.rho + 2 * s.n + pair, words[..., s.word] >> (s.bit + 16 * pair) & (1 << bits) - 1
        if bits == 3:
            rho, n = SPREAD
            spread = [(words[..., k] >> (15 + 16 * pair) & 1) << k for k in range(3)]
            yield 16 * rho + 2 * n + pair, spread[0] | spread[1] | spread[2]


def _pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes (rows, cols) as rows of bytes, eight codes in `bits` bytes, the first in the lowest bits."""
    rows, cols = codes.shape
    eights = torch.nn.functional.pad(codes, (0, -cols % 8)).view(rows, -1, 8)
    out = codes.new_zeros((rows, eights.shape[1], bits))
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        code = eights[..., place].to(torch.int16) << shift
        out[..., byte] |= (code & 0xFF).to(torch.uint8)
        if shift + bits > 8:
            out[..., byte + 1] |= (code >> 8).to(torch.uint8)
    return out.view(rows, -1)


def _u16(values: Tensor) -> Tensor:
    return values.to(torch.int16).view(torch.uint16)
