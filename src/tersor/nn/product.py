"""Products with a layout's weights, and their gradients.

The weights are not trained, but what comes before them may be: adapters, prompts, the input itself. An
operator on a GPU tells autograd nothing, so here is what it should know: dx = dy W, with W decoded
anew in the backward pass instead of being kept for it. Inductor, which partitions forward and backward
itself, is given the decoding and torch's product; it does not see gradients of a bias alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.nn.forms import Arrays, Form


def product(form: Form, x: Tensor, arrays: Arrays, bias: Tensor | None, exact: bool) -> Tensor:
    """x (..., cols) bfloat16 -> (..., rows), as `Form.linear`; differentiable in x and in the bias."""
    if torch.compiler.is_compiling():
        return (
            F.linear(x, form.decode(arrays), bias)
            if wants_gradient(x)
            else form.linear(x, arrays, bias, exact)
        )
    if wants_gradient(x) or (bias is not None and wants_gradient(bias)):
        made: Tensor = _Product.apply(x, bias, form, exact, *arrays)  # type: ignore[no-untyped-call]
        return made
    return form.linear(x, arrays, bias, exact)


def wants_gradient(x: Tensor) -> bool:
    """Whether autograd records what is done with `x`."""
    return torch.is_grad_enabled() and x.requires_grad


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, form: Form, exact: bool, *arrays: Tensor) -> Tensor:
        """x, bias, then what has no gradient."""
        ctx.form = form
        ctx.save_for_backward(*arrays)
        y = form.linear(x, arrays, bias, exact)
        return y.clone() if y._is_view() else y  # into a view made here nobody could write

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of x and bias."""
        (dy,), arrays = gradients, ctx.saved_tensors
        dx = dy @ ctx.form.decode(arrays) if ctx.needs_input_grad[0] else None
        db = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return dx, db, None, None, *(None for _ in arrays)
