"""The dequantiser in torch, bit for bit the one in `dequantize.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tersor.quantize.dequantize import inverse
from tersor.quantize.grid import to_f16
from tersor.quantize.quantized import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP, Quantized

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def dequantize(q: Quantized, device: torch.device | str = "cpu") -> Tensor:
    """The weights, (R, C) of `q.dtype` in original column order, on `device`."""

    def put(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(device)

    rows, columns = q.shape
    group = q.settings.group_size(columns)
    stats = put(q.stats).float().repeat_interleave(q.settings.run, dim=0)[:rows]
    scale = stats[..., SCALE_MIN] + stats[..., SCALE_STEP] * put(q.scale_codes).float()
    zero = stats[..., ZERO_MIN] + stats[..., ZERO_STEP] * put(q.zero_codes).float()
    scale, zero = (x.repeat_interleave(group, dim=1)[:, :columns] for x in (scale, zero))
    weight = scale * (put(q.codes).float() - zero)
    weight.view(-1)[put(q.outlier_index)] += put(q.outlier_value).float()
    weight = weight * q.unit
    if q.dtype == "F16":
        weight = to_f16(weight)
    weight = weight.to(TORCH_DTYPES[q.dtype])
    return weight if q.order is None else weight[:, put(inverse(q.order))]
