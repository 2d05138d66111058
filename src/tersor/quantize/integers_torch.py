"""Entropy-coded integers in torch, equal to the plain quantiser in `integers.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tersor.codec.quantized.dequantize import inverse
from tersor.codec.quantized.dequantize_torch import rounded
from tersor.codec.quantized.integers import Integers
from tersor.quantize.factor import inverse_factor
from tersor.quantize.integers import MAX_CODE, IntegerSettings, column_steps, sample_rows
from tersor.quantize.settings import BLOCK
from tersor.quantize.spqr import check_weight


def quantize(
    weight: Tensor,
    h: Tensor | None,
    settings: IntegerSettings,
    compute: torch.dtype = torch.float32,
    served: torch.dtype | None = None,
    name: str = "?",
) -> Integers:
    """As `spqr.quantize`, to integers."""
    served = served or weight.dtype
    dtype = check_weight(weight, served, name)
    rows, columns = weight.shape
    h = torch.eye(columns, device=weight.device) if h is None else h
    order = np.arange(columns, dtype=np.int32)
    if settings.act_order:
        order = np.argsort(-h.diagonal().double().cpu().numpy(), kind="stable").astype(np.int32)
    places = torch.from_numpy(order).to(weight.device, torch.int64)
    upper = inverse_factor(h[places][:, places], settings.percdamp)
    w = weight.detach().to(compute).T[places]
    sample = w[:, sample_rows(rows, columns)].T.double().cpu().numpy()
    largest = w.abs().amax(dim=1).double().cpu().numpy()
    steps = column_steps(sample, largest, upper.diagonal().cpu().numpy(), settings.bits)
    codes = _columns(w, upper.to(compute), torch.from_numpy(steps).to(w.device), served)
    back = inverse(order)
    codes = codes[torch.from_numpy(back).to(w.device)].T.contiguous()
    return Integers(dtype, codes.cpu().numpy(), steps[back])


def _columns(w: Tensor, upper: Tensor, steps: Tensor, served: torch.dtype) -> Tensor:
    """Codes (C, R) int8 of the columns of w (C, R), which is used up."""
    columns, d = len(w), upper.diagonal()
    codes = torch.empty_like(w, dtype=torch.int8)
    wide = steps.to(w.dtype)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty_like(w[start:stop])
        for j in range(start, stop):
            code = (w[j] / wide[j]).round_().clamp_(-MAX_CODE, MAX_CODE)
            codes[j] = code
            value = rounded(code.float() * steps[j], served).to(w.dtype)
            error = (w[j] - value) / d[j]
            errors[j - start] = error
            if j + 1 < stop:
                w[j + 1 : stop].addcmul_(upper[j, j + 1 : stop, None], error, value=-1)
        if stop < columns:
            w[stop:] -= upper[start:stop, stop:].T @ errors
    return codes
