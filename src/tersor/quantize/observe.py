"""Watching which inputs reach which matrix, and summing their Hessians.

Instead of hooks on modules, every call of `linear(x, weight)` is seen where it happens, by a torch
function mode: so an expert's slice of a fused parameter is found like any other weight, by its address.
Matrices that are given the very same input (q, k and v; gate and up) share one Hessian.

An expert that got few tokens knows little of its inputs, but all experts of a layer read the same hidden
states. So to an expert's own tokens C more are added (C its inputs) that are distributed as those of all
experts together: with none of its own it is calibrated on the pool, with many the pool does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tersor.quantize.blocks import Target

_WIDENS = hasattr(torch.ops.aten.mm, "dtype")  # a product of 16-bit matrices in float32, ten times as fast


class Hessian:
    """The running sum of x x^T in float32."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Add inputs (..., C)."""
        x = inputs.reshape(-1, inputs.shape[-1])
        if self.sum is None:
            self.sum = torch.zeros(x.shape[1], x.shape[1], device=x.device)
        if _WIDENS and x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
            self.sum += torch.mm(x.T, x, out_dtype=torch.float32)  # exact products, summed in float32
        else:
            x = x.float()
            self.sum.addmm_(x.T, x)
        self.count += len(x)

    def mean(self) -> Tensor | None:
        """(2/N) sum x x^T, (C, C); None when no input came."""
        return None if self.sum is None else self.sum * (2.0 / self.count)

    def mean_with(self, pool: Hessian) -> Tensor | None:
        """The same with C inputs more, distributed as those of `pool`."""
        prior = pool.mean()
        if prior is None:
            return self.mean()
        extra = len(prior)
        own = self.sum if self.sum is not None else torch.zeros_like(prior)
        return (2.0 * own + extra * prior) / (self.count + extra)


class Observer(TorchFunctionMode):
    """Within it, the inputs of `targets` are summed; call `next_sequence` after each forward pass."""

    def __init__(self, targets: Iterable[Target]) -> None:
        super().__init__()
        self._targets = list(targets)
        self._by_address = {target.weight.data_ptr(): target for target in self._targets}
        self._pools: dict[int, Hessian] = {}
        self._leader: dict[str, str] = {}
        self._hessians: dict[str, Hessian] = {}
        self._inputs: dict[tuple[Any, ...], tuple[str, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x = args[0] if args else kwargs["input"]
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            target = self._by_address.get(weight.data_ptr())
            if target is not None and weight.shape == target.weight.shape:
                with torch._C.DisableTorchFunction():
                    self._see(target.name, x.detach())
        return func(*args, **kwargs)

    def _see(self, name: str, x: Tensor) -> None:
        if name not in self._leader:
            # the tensor is kept until the pass ends, so an equal address means the same input
            key = (x.data_ptr(), tuple(x.shape), x.stride())
            leader, _ = self._inputs.setdefault(key, (name, x))
            self._leader[name] = leader
        if self._leader[name] == name:
            self._hessians.setdefault(name, Hessian()).add(x)

    def next_sequence(self) -> None:
        """Forget the inputs of the pass that ended."""
        self._inputs.clear()

    def groups(self) -> list[list[str]]:
        """Names of matrices by shared input, in order of first use."""
        found: dict[str, list[str]] = {}
        for name, leader in self._leader.items():
            found.setdefault(leader, []).append(name)
        return list(found.values())

    def hessian(self, name: str) -> Hessian:
        """The sums of one matrix; empty when it was never used."""
        return self._hessians.get(self._leader.get(name, name), Hessian())

    def mean(self, target: Target) -> Tensor | None:
        """The Hessian to quantise `target` with, (C, C); None when nothing is known of its inputs."""
        own = self.hessian(target.name)
        return own.mean() if target.index is None else own.mean_with(self._pool(target))

    def _pool(self, target: Target) -> Hessian:
        """All slices of the target's parameter together."""
        key = id(target.parameter)
        if key not in self._pools:
            pool = self._pools[key] = Hessian()
            for slice_ in self._targets:
                part = self.hessian(slice_.name)
                if slice_.parameter is target.parameter and part.sum is not None:
                    pool.sum = part.sum.clone() if pool.sum is None else pool.sum.add_(part.sum)
                    pool.count += part.count
        return self._pools[key]
