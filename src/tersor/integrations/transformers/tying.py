"""Tied weights: an output head that is the input embedding shares its compressed form.

Transformers ties by name: `all_tied_weights_keys` says {"lm_head.weight":
"model.embed_tokens.weight"}, and after loading it sets the one parameter in the place of the
other. A compressed weight is several parameters, so each pair becomes a pair per part. Both
modules then hold the same tensors, once in memory and once on disk.
"""

from __future__ import annotations

from typing import Any

from tersor.format.manifest import TensorEntry
from tersor.nn.stored import part_names


def partners(model: Any, name: str) -> list[str]:
    """The parameters that Transformers ties to the parameter `name`."""
    pairs = model.all_tied_weights_keys.items()
    group = {source for target, source in pairs if name in (target, source)}
    return sorted({n for pair in pairs if pair[1] in group for n in pair} - {name})


def tie_parts(model: Any, name: str, entry: TensorEntry) -> None:
    """Replace every tied pair that `name` is in, both sides being compressed, by pairs of its parts."""
    pairs: dict[str, str] = {}
    for target, source in model.all_tied_weights_keys.items():
        if name in (target, source):
            pairs |= dict(zip(_parts(target, entry), _parts(source, entry), strict=True))
        else:
            pairs[target] = source
    _set(model, pairs)


def untie(model: Any, name: str) -> None:
    """Forget the tied pairs of `name`: the checkpoint holds different tensors for the two sides."""
    _set(model, {t: s for t, s in model.all_tied_weights_keys.items() if name not in (t, s)})


def _parts(name: str, entry: TensorEntry) -> list[str]:
    module, _, leaf = name.rpartition(".")
    return [f"{module}.{part}".lstrip(".") for part in part_names(leaf, entry)]


def _set(model: Any, pairs: dict[str, str]) -> None:
    """Set the pairs, also where `tie_weights()` reads them when a user calls it later."""
    model.all_tied_weights_keys = pairs
    model._tied_weights_keys = dict(pairs)  # on the instance; the class keeps its own
