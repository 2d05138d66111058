"""Weights that several modules hold: an output head that is the input embedding.

Sharing is by identity: the modules have the same parameter objects, once in memory. A layer's
weight can be held for fused products if nobody else has a part of it, or if all who have it are
layers and embeddings that have all of it; then they change together and go on sharing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tersor.nn.embedding import CompressedEmbedding
from tersor.nn.fused import Fused
from tersor.nn.linear import CompressedLinear
from tersor.nn.module import CompressedModule
from tersor.nn.stored import Stored


def own_parameters(module: nn.Module) -> set[int]:
    """The identities of all parameters of a layer itself but its bias."""
    return {id(p) for name, p in module._parameters.items() if name != "bias" and p is not None}


def users(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Who has each parameter, by the parameter's identity."""
    found: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(module)
    return found


def partners(module: CompressedLinear, having: dict[int, list[nn.Module]]) -> list[CompressedModule] | None:
    """Who shares the layer's weight, all of it; None if somebody else has a part. having: `users` of the model."""
    own = own_parameters(module)
    found: list[CompressedModule] = []
    for other in {id(m): m for p in own for m in having[p] if m is not module}.values():
        if not isinstance(other, CompressedLinear | CompressedEmbedding) or hasattr(other, "_hf_hook"):
            return None
        if own_parameters(other) != own or other.compressed["weight"] != module.compressed["weight"]:
            return None
        found.append(other)
    return found


def change(
    model: nn.Module, module: CompressedLinear, others: Iterable[CompressedModule], new: Fused | Stored
) -> None:
    """Have `others`, whose weight was the layer's, share it again in the form `new` that the layer has now."""
    for other in others:
        old: Any = other.compressed["weight"]
        for name in old.held:
            del other._parameters[name]
        for name in new.held:
            other.register_parameter(name, module.get_parameter(name))
        other.compressed["weight"] = new
        _rename_ties(model, old.held, new.held)


def _rename_ties(model: Any, old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Where a model keeps a list of its tied parameters, as those of Transformers do: put the new names there."""
    for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
        ties = getattr(model, attribute, None)
        if not isinstance(ties, dict):
            continue
        renamed: dict[str, str] = {}
        for target, source in ties.items():
            (to, _, name), (at, _, _) = target.rpartition("."), source.rpartition(".")
            if name == old[0] and source == f"{at}.{name}":
                renamed |= {f"{to}.{part}": f"{at}.{part}" for part in new}
            elif name not in old:
                renamed[target] = source
        setattr(model, attribute, renamed)
