"""Experts: one parameter for the model, many tensors on disk.

Checkpoints of mixture-of-experts models hold a matrix per expert and projection, Transformers
computes with 3-D parameters that stack them:

    experts.0.gate_proj.weight (I, H) \\
    experts.0.up_proj.weight   (I, H)  } ->  experts.gate_up_proj (E, 2 I, H)
    experts.1.gate_proj.weight ...    /

Compressed tensors cannot be stacked, and need not be. They stay in the module tree under the
names they have on disk, as `StoredWeight` leaves, and `experts.gate_up_proj` becomes an
attribute that assembles from them what it is asked for: `gate_up_proj[3]` decodes two
matrices, not 2 E. The module's own forward runs on it unchanged, and saving writes the names
that were loaded.

Forwards that take the whole parameter (one grouped product for all experts) would decode all
E though a token is sent to 8 of 128. So the routing is read off the arguments of the call, and
while it runs the whole parameter is zeros except for the experts that are hit. No product
touches the others: the results are the same bits, and their pages are never written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tersor.nn.deferred import materialize
from tersor.nn.module import CompressedModule


class StoredWeight(nn.Module):
    """A leaf that holds one tensor, compressed or not; calling it gives the plain tensor.

    It is called rather than looked into, so that offloading, which brings a module's
    parameters in before its forward and out after it, works for it as for any other.
    """

    def __init__(self, leaf: str, weight: Tensor) -> None:
        super().__init__()
        self.leaf = leaf
        self.register_parameter(leaf, nn.Parameter(weight, requires_grad=False))

    def forward(self) -> Tensor:
        """The tensor."""
        return materialize(getattr(self, self.leaf))


class CompressedExperts(CompressedModule):
    """Mixin of modules with stacked experts: notes which experts a call is routed to."""

    stacked = True
    hit: tuple[int, ...] | None = None  # only during a forward whose routing is known

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The plain module's forward. Its routing is the only tensor of integers among the arguments."""
        self.hit = self._routed([*args, *kwargs.values()])
        try:
            return super().forward(*args, **kwargs)
        finally:
            del self.hit

    def _routed(self, arguments: list[Any]) -> tuple[int, ...] | None:
        if torch.compiler.is_compiling():
            return None  # the numbers are not known when the graph is made
        integers = [a for a in arguments if isinstance(a, Tensor) and a.dtype in (torch.int32, torch.int64)]
        experts = min((s.shape[0] for s in self.compressed.values() if isinstance(s, ExpertStack)), default=0)
        if len(integers) != 1 or integers[0].is_meta:
            return None
        return tuple(index for index in torch.unique(integers[0]).tolist() if 0 <= index < experts)


@dataclass(frozen=True)
class ExpertStack:
    """The 3-D parameter `name`, assembled from the leaves `INDEX.projection` of its module.

    projections: paths below an expert, joined in this order along dimension `dim` of one
    expert's matrix; shape: (experts, rows, columns) of the whole.
    """

    name: str
    projections: tuple[str, ...]
    dim: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def cast(self, dtype: torch.dtype) -> ExpertStack:
        """The same stack, of `dtype`."""
        return replace(self, dtype=dtype)

    def leaf(self, module: nn.Module, index: int, projection: str) -> StoredWeight:
        """The leaf that holds one projection of one expert."""
        leaf = module.get_submodule(f"{index}.{projection}")
        assert isinstance(leaf, StoredWeight)
        return leaf

    def device(self, module: nn.Module) -> torch.device:
        """Where the stored arrays are."""
        return next(self.leaf(module, 0, self.projections[0]).parameters()).device

    def select(self, module: nn.Module, index: int) -> Tensor:
        """One expert's matrix."""
        parts = [self.leaf(module, index, projection)() for projection in self.projections]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)
        return whole.to(self.dtype)

    def decode(self, module: nn.Module) -> Tensor:
        """All experts, `shape`; during a forward only those that are hit, the others zero."""
        hit = module.hit if isinstance(module, CompressedExperts) else None
        if not hit:
            return torch.stack([self.select(module, index) for index in range(self.shape[0])])
        first = self.select(module, hit[0])  # it knows the device; offloaded leaves only know "meta"
        whole = torch.zeros(self.shape, dtype=self.dtype, device=first.device)
        whole[hit[0]] = first
        for index in hit[1:]:
            whole[index] = self.select(module, index)
        return whole

    def restore(self, module: nn.Module) -> Tensor:
        """All experts, after removing their leaves from `module`."""
        weight = self.decode(module)
        for index in range(self.shape[0]):
            for projection in self.projections:
                remove_leaf(module, f"{index}.{projection}")
        return weight


def remove_leaf(module: nn.Module, path: str) -> None:
    """Delete the submodule at `path`, and each bare container above it that this leaves empty."""
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    del owner._modules[name]
    if parent and type(owner) is nn.Module and not owner._modules and not owner._parameters:
        remove_leaf(module, parent)
