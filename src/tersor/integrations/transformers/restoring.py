"""`model.dequantize()`: the plain model back, with the names, ties and conversions it had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tersor.format.errors import UsageError
from tersor.nn import CompressedModule, Stored, restore
from tersor.nn.ahead import dissolve
from tersor.nn.fused import Fused
from tersor.nn.scope import close_scopes


def restore_model(model: Any, converters: Sequence[Any], dtype: torch.dtype | None) -> Any:
    """Decode every compressed parameter in place; `dtype` as in `dequantize`, the model's own by default."""
    compressed = [(p, m) for p, m in model.named_modules() if isinstance(m, CompressedModule)]
    offloaded = [path for path, module in compressed if any(p.is_meta for p in module.parameters())]
    if offloaded:
        raise UsageError(
            f"module {offloaded[0]!r} (and {len(offloaded) - 1} more) is offloaded; load the model without "
            f"offloading to dequantize it, or `tersor decompress` the checkpoint"
        )
    part_of = {
        f"{path}.{source.held[0]}".lstrip("."): f"{path}.{source.name}".lstrip(".")
        for path, module in compressed
        for source in module.compressed.values()
        if isinstance(source, Stored | Fused)
    }
    pairs = {}
    for target, source in model.all_tied_weights_keys.items():
        if target in part_of:
            pairs[part_of[target]] = part_of[source]
        elif not any(target.startswith(f"{name}_") for name in part_of.values()):
            pairs[target] = source
    for _, module in compressed:
        restore(module)
    dissolve(model)
    close_scopes(model)
    vars(model).pop("_tied_weights_keys", None)
    model.all_tied_weights_keys = pairs
    model.tie_weights(recompute_mapping=False)
    model._weight_conversions = [*(model._weight_conversions or ()), *converters]
    return model if dtype in (None, model.config.dtype) else model.to(dtype)
