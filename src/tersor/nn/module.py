"""What every module with compressed parameters has in common.

The design: not a compressed *layer* but a compressed *parameter*. For a module of any class
T, a subclass of T is made in which the parameter is a read-only attribute that decodes. T's
own `forward` then runs unchanged, on the same values, whether T is GPT-2's Conv1D, Gemma's
scaled embedding or something we have never seen: no list of architectures, and equality bit
for bit without argument. Forward hooks were rejected (they defeat `torch.compile` and meet
accelerate's), a tensor subclass as the parameter itself too (offloading and safetensors want
plain tensors).

Only where T's forward would decode more than it needs is there a class of our own, put
*below* T in the method resolution order, in place of T's base: T.forward -> super().forward
-> CompressedEmbedding.forward, which decodes the rows it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tersor.nn.deferred import DeferredWeight, Source

AHEAD = "ahead"  # an attribute of a layer: who decodes it ahead (`tersor.nn.ahead`), and its number there


class CompressedParameter:
    """The attribute that stands where a parameter was: reading it decodes, writing it is an error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: CompressedModule | None, owner: type | None = None) -> Any:
        return self if module is None else module.compressed_parameter(self.name)

    def __set__(self, module: CompressedModule, value: object) -> None:
        raise TypeError(
            f"{type(module).__name__}.{self.name} is stored compressed and read-only; "
            f"call model.dequantize() before changing weights"
        )


class CompressedModule(nn.Module):
    """Mixin of the classes that `tersor.nn.surgery` makes; never instantiated by itself."""

    plain_class: ClassVar[type[nn.Module]]  # T, what the module was and will be again
    stacked: ClassVar[bool] = False  # whether some are stacks of experts
    compressed: dict[str, Source]  # parameter name -> how it is decoded

    def compressed_parameter(self, name: str) -> Tensor:
        """The parameter `name`: deferred, or decoded at once under `torch.compile`."""
        source = self.compressed[name]
        if torch.compiler.is_compiling():
            return source.decode(self)
        return DeferredWeight(self, source)

    def decode(self, name: str) -> Tensor:
        """The parameter `name` as a plain tensor."""
        return self.compressed[name].decode(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompressedModule:
        """`.to(...)` and its like: a cast changes what is decoded to, never what is stored."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, source in self.compressed.items():
            self.compressed[name] = source.cast(fn(torch.empty(0, dtype=source.dtype)).dtype)
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in torch, but refuses to let tensor parallelism cut a stored array at an arbitrary byte."""
        if param is not None and hasattr(param, "device_mesh"):
            raise NotImplementedError(
                f"{type(self).__name__}.{name}: tensor parallelism cannot shard compressed weights yet; "
                f"load without a tensor-parallel plan, or decompress the checkpoint first"
            )
        super().register_parameter(name, param)

    def extra_repr(self) -> str:
        """T's own, and what is compressed."""
        return ", ".join(filter(None, (super().extra_repr(), f"compressed={list(self.compressed)}")))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by T and the names: the class itself is made at run time. A layer leaves its model behind."""
        from tersor.nn.surgery import blank  # the surgery imports this module

        state = {name: value for name, value in self.__dict__.items() if name != AHEAD}
        return blank, (self.plain_class, tuple(sorted(self.compressed)), self.stacked), state
