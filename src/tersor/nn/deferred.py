"""A weight that is not there yet: shape, dtype and device are known, data is made when it is asked for.

Model code reads `module.weight` for more than its values. Gemma's embedding asks only
`self.weight.dtype` and would decode half a gigabyte for it; an experts module writes
`self.gate_up_proj[i]` and needs one expert of 128. So a compressed parameter hands out this
tensor subclass. Questions about metadata it answers itself, indexing by a single number it
passes on to a source that can decode a part, and for any other operation it steps aside: it
is replaced by the decoded weight and the operation runs as it always did, on a plain tensor,
bit for bit. It keeps nothing but the decoded tensor, for as long as the caller keeps it.

Under `torch.compile` it is not used: there a decode that nobody reads is dropped anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Source(Protocol):
    """Where a deferred weight comes from."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def cast(self, dtype: torch.dtype) -> Source:
        """The same source, decoding to `dtype`."""
        ...

    def device(self, module: torch.nn.Module) -> torch.device:
        """The device on which `module` holds the stored form."""
        ...

    def decode(self, module: torch.nn.Module) -> Tensor:
        """The whole weight: `shape`, `dtype`."""
        ...

    def select(self, module: torch.nn.Module, index: int) -> Tensor:
        """`weight[index]`, decoding no more than that where possible; 0 <= index < shape[0]."""
        ...

    def restore(self, module: torch.nn.Module) -> Tensor:
        """The whole weight, after removing the stored form from `module`."""
        ...


# What a wrapper without data answers correctly by itself.
_METADATA: frozenset[Any] = frozenset(
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad", "grad_fn", "is_leaf",
                 "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu", "is_sparse", "is_quantized", "itemsize", "nbytes")
) | {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.stride, Tensor.__len__,
    Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, Tensor.get_device, Tensor.__hash__,
    torch.numel, torch.is_floating_point, torch.is_complex,
}  # fmt: skip


class DeferredWeight(Tensor):
    """The weight that `source` can decode from `module`, until an operation needs its data."""

    # How Transformers marks what already has its values: without it, loading a model would
    # decode every weight once to initialise the copy with random numbers.
    _is_hf_initialized = True

    _module: torch.nn.Module
    _source: Source
    _decoded: Tensor | None

    @staticmethod
    def __new__(cls, module: torch.nn.Module, source: Source) -> DeferredWeight:
        self: DeferredWeight = Tensor._make_wrapper_subclass(
            cls, source.shape, dtype=source.dtype, device=source.device(module)
        )
        self._module, self._source, self._decoded = module, source, None
        return self

    def decoded(self) -> Tensor:
        """The plain tensor, decoded at the first call."""
        if self._decoded is None:
            self._decoded = self._source.decode(self._module)
        return self._decoded

    def _select(self, index: object) -> Tensor | None:
        """`self[index]` by a partial decode, or None if the index is not a single number in range."""
        if isinstance(index, Tensor) and index.dim() == 0 and index.dtype in (torch.int32, torch.int64):
            index = index.item()
        if self._decoded is not None or not isinstance(index, int) or isinstance(index, bool):
            return None
        size = self._source.shape[0]
        if not -size <= index < size:
            return None  # the plain tensor raises the usual error
        return self._source.select(self._module, index % size)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is Tensor.__getitem__ and isinstance(args[0], DeferredWeight):
            part = args[0]._select(args[1])
            if part is not None:
                return part
        args, kwargs = tree_map_only(DeferredWeight, DeferredWeight.decoded, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Reached only from C++ that skipped `__torch_function__`; the same answer."""
        args, kwargs = tree_map_only(DeferredWeight, DeferredWeight.decoded, (args, kwargs or {}))
        return func(*args, **kwargs)


def materialize(weight: Tensor) -> Tensor:
    """`weight` as a plain tensor."""
    return weight.decoded() if isinstance(weight, DeferredWeight) else weight
