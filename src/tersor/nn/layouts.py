"""How a model's weights lie in GPU memory: `compact` as on disk, or `fast` for fused products.

    layout    bits per weight   product
    compact   10.7              decode to memory, then the plain product: the plain model's bits
    fast      11.4              few tokens, on Hopper a few hundred: fused; exact, or more: as compact

So it is for lossless weights. Quantised ones take 4.4 bits for 4 in groups of 32 (and 0.2 for
0.5 % of outliers) in `fast`, as much as stored, and are dequantised for each product in `compact`.

`auto` takes `fast` where it fits the GPU's free memory. Only linear layers change: an embedding
decodes its few rows from the compact form well enough, unless it is the head's weight too.
In `fast`, layers that are given the same input become one matrix (`tersor.nn.joint`). Where products need decoded
weights, in `compact` and if they are to be exact, these are decoded ahead of them (`tersor.nn.ahead`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from tersor.format.errors import UsageError
from tersor.nn import ahead, sharing, siblings
from tersor.nn.fused import Fused, can_hold, can_share, fused_bytes
from tersor.nn.linear import CompressedLinear
from tersor.nn.module import CompressedModule
from tersor.nn.scope import close_scopes
from tersor.nn.stored import Stored

Layout = Literal["auto", "compact", "fast"]

_SPARE_BYTES = 1 << 30  # that `auto` leaves free for the cache and activations


def lay_out(
    model: nn.Module,
    layout: Layout = "auto",
    exact: bool = False,
    device_type: str = "cuda",
    on_layer: Callable[[str], None] = lambda _: None,
) -> int:
    """Bring the linear layers of `model` that are on a GPU into `layout`; returns how many are `fast` now.

    One layer at a time: beside the model, memory for one decoded matrix, or for one group of layers
    with the same input, is needed. Layers on
    other devices (a CPU gains nothing) or offloaded stay as they are. May be called again with
    another layout. Raises UsageError for an unknown layout.
    """
    if layout not in ("auto", "compact", "fast"):
        raise UsageError(f"layout {layout!r} is not one of auto, compact, fast")
    ahead.dissolve(model)
    candidates = list(_candidates(model, device_type))
    if layout == "auto":
        layout = "fast" if _fits([module for _, module, _ in candidates]) else "compact"
    fast: set[nn.Module] = set()
    found = siblings.groups(model, {module for _, module, _ in candidates})
    units = siblings.common_units(found)
    for name, module, others in candidates:
        source = module.compressed["weight"]
        if (
            layout == "fast"
            and isinstance(source, Stored)
            and (can_share(source) if others else can_hold(source))
        ):
            module.compressed["weight"] = Fused.of(module, source, exact, units.get(module))
        elif layout == "fast" and isinstance(source, Fused):
            module.compressed["weight"] = replace(source, exact=exact)
        elif layout == "compact" and isinstance(source, Fused):
            stored, parts = source.stored(module)
            source.detach(module)
            stored.attach(module, parts)
            module.compressed["weight"] = stored
        made = module.compressed["weight"]
        assert isinstance(made, Fused | Stored)
        if made is not source:
            sharing.change(model, module, others, made)
        if isinstance(made, Fused):
            fast.add(module)
        on_layer(name)
    siblings.join_groups(found)
    ahead.install(model, [module for _, module, _ in candidates])
    close_scopes(model)
    return len(fast)


def _candidates(
    model: nn.Module, device_type: str
) -> Iterator[tuple[str, CompressedLinear, list[CompressedModule]]]:
    """Linear layers on such a device, and who shares their weights; a shared one is named once."""
    having = sharing.users(model)
    seen: set[nn.Module] = set()
    for name, module in model.named_modules():
        if not isinstance(module, CompressedLinear) or hasattr(module, "_hf_hook") or module in seen:
            continue
        others = sharing.partners(module, having)
        if others is not None and module.compressed["weight"].device(module).type == device_type:
            seen.update(others)
            yield name, module, others


def _fits(candidates: list[CompressedLinear]) -> bool:
    """Whether the layers' growth, and one decoded matrix, fit the free memory of their GPUs."""
    growth: dict[torch.device, float] = {}
    for module in candidates:
        source = module.compressed["weight"]
        if not isinstance(source, Stored) or not can_hold(source):
            continue
        held = sum(p.nbytes for p in source.parts(module).values())
        device = source.device(module)
        growth[device] = growth.get(device, 0.0) + fused_bytes(source.entry) - held
    return all(more + _SPARE_BYTES < torch.cuda.mem_get_info(device)[0] for device, more in growth.items())
