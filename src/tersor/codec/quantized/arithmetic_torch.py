"""`arithmetic.py` in torch, bit for bit, on any device. Numbers are float32 tensors that hold what they say."""

from __future__ import annotations

import torch
from torch import Tensor


def odd_sum(x: Tensor, y: Tensor) -> Tensor:
    """x + y in float32, rounded to odd."""
    total = x + y
    part = total - x
    error = (x - (total - part)).add_(y - part)
    inexact = error != 0
    beyond = (error < 0).logical_xor_(total < 0).logical_and_(inexact)
    return total.view(torch.int32).sub_(beyond.int()).bitwise_or_(inexact.int()).view(torch.float32)


def statistic(minimum: Tensor, step: Tensor, code: Tensor) -> Tensor:
    """Scales or zeros: minimum + step * code, values of binary16, rounded once to binary16."""
    return odd_sum(minimum, step * code).half().float()


def grid(scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Factor a and offset b of groups, values of bfloat16, from values of binary16."""
    a = scale.bfloat16().float()
    return a, (a * zero).neg_().bfloat16().float()


def base(a: Tensor, b: Tensor, code: Tensor) -> Tensor:
    """a * code + b, rounded once to bfloat16."""
    return odd_sum(a * code, b).bfloat16().float()
