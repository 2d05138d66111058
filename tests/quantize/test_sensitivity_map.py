"""The picture of a layer: what is bright matters, and the file is a PNG."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from tersor.quantize import spqr
from tersor.quantize.sensitivity_map import LARGEST, OUTLIER, draw, outlier_mask, sensitivity_map, write_png
from tersor.quantize.settings import preset


def layer() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator)
    x[:, 10] *= 20
    return torch.randn(32, 64, generator=generator), x.T @ x / 250


def test_a_weight_matters_by_what_only_it_can_repair() -> None:
    weight, h = layer()
    found = sensitivity_map(weight, h, bits=3, percdamp=0.01)
    h64 = h.double() + 0.01 * h.diagonal().double().mean() * torch.eye(64)
    w = weight.double()
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    step = (high - low) / 7
    rounded = low + step * ((w - low) / step).round()
    expected = (w - rounded) ** 2 / torch.linalg.inv(h64).diagonal()
    unit = (w.var(0, unbiased=False) / torch.linalg.inv(h64).diagonal()).mean()
    np.testing.assert_allclose(found, expected / unit, rtol=1e-4, atol=1e-8)
    assert found[:, 10].mean() > 20 * np.delete(found, 10, axis=1).mean()


def test_outliers_are_drawn_where_they_are() -> None:
    weight, h = layer()
    weight[5, 10] = 6.0
    q = spqr.quantize(weight, h, preset("3-bit", tau=0.02))
    mask = outlier_mask(q)
    assert mask[5, 10]
    assert mask.sum() == len(q.outlier_value)
    picture = draw(sensitivity_map(weight, h), mask)
    assert picture.shape == (32, 64, 3)
    assert tuple(picture[5, 10]) == OUTLIER
    assert (picture[~mask].std(axis=1) == 0).all()  # grey


def test_large_layers_are_pooled_without_losing_outliers() -> None:
    sensitivity = np.full((3000, 100), 1e-4, dtype=np.float32)
    mask = np.zeros(sensitivity.shape, dtype=np.bool_)
    mask[2999, 99] = True
    picture = draw(sensitivity, mask)
    assert max(picture.shape) <= LARGEST
    assert tuple(picture[-1, -1]) == OUTLIER


def test_the_file_is_a_png_of_the_picture(tmp_path: Path) -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    write_png(tmp_path / "a.png", picture)
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (3, 2)
    rows = zlib.decompress(chunks[b"IDAT"])
    assert rows == b"\0" + picture[0].tobytes() + b"\0" + picture[1].tobytes()
