"""A model run as DFloat11 runs it: before a block, all its linear weights are decoded, in one launch, to one buffer.

The official package hangs a forward pre-hook on every transformer block, on the LM head and on the embedding. Each
decodes its group of matrices whole to the one buffer that all groups share, as large as the largest, and the
products (or the lookup) read there. So it is here, except that the buffer never moves, so that weights are put in
place once, and that nothing is asked of the host, so that a step can be captured as a CUDA graph. The official
package has no graph; what its launches cost it is not held against it.

Random weights serve for speed and memory only; Gaussian ones take 10.8 bits each, about what trained ones take. All
blocks get the first one's weights, encoded once, and each keeps its own copy of the buffers. That weights repeat
changes no time: a block's buffers are several times the L2 cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tersor.kernels.dfloat11.encode import encode
from tersor.kernels.dfloat11.layout import Buffers

if TYPE_CHECKING:  # it imports the CUDA driver
    from dfloat11_ptx import Prepare


class Method:
    """The blocks and the head of `model` decoded before they run, by what `prepare` makes of a group's buffers."""

    def __init__(self, model: Any, prepare: Prepare) -> None:
        """The model's weights go; ValueError if what is decoded is not what they were."""
        groups = (*model.model.layers, model.lm_head, model.model.embed_tokens)
        largest = max(sum(m.weight.numel() for m in _members(group)) for group in groups)
        self._scratch = torch.empty(largest, dtype=torch.bfloat16, device=model.device)
        self._prepare = prepare
        first, *others = model.model.layers
        buffers = self.decode_before(first)
        for block in others:
            self._hang(block, Buffers(*(tensor.clone() for tensor in vars(buffers).values())))
        self.decode_before(model.lm_head)

    def decode_before(self, group: nn.Module) -> Buffers:
        """Decode this module's weights before it runs: all its linear layers', or its own. Returns the buffers."""
        weight = torch.cat([module.weight.detach().view(-1) for module in _members(group)])
        buffers = encode(weight)
        out = self._scratch[: weight.numel()]
        out.view(torch.int16).fill_(-1)
        self._prepare(buffers)(out)
        if not torch.equal(out.view(torch.int16), weight.view(torch.int16)):
            raise ValueError(f"{type(group).__name__}: its weights do not decode to the original bits")
        self._hang(group, buffers)
        return buffers

    def _hang(self, group: nn.Module, buffers: Buffers) -> None:
        out, launch, at = self._scratch[: buffers.weights], self._prepare(buffers), 0
        for module in _members(group):
            shape = module.weight.shape
            place = out[at : at + shape.numel()].view(shape)
            module.weight = nn.Parameter(place, requires_grad=False)
            at += shape.numel()

        def before(module: nn.Module, arguments: Any) -> None:
            launch(out)

        group.register_forward_pre_hook(before)


def repeat_first(blocks: Iterable[nn.Module]) -> None:
    """Give all blocks the linear weights of the first."""
    first, *others = blocks
    for block in others:
        for module, same in zip(_members(block), _members(first), strict=True):
            module.weight.data.copy_(same.weight.data)


def _members(group: nn.Module) -> list[Any]:
    """The modules whose weights a group holds, in the official order."""
    return [module for module in group.modules() if isinstance(module, nn.Linear | nn.Embedding)]
