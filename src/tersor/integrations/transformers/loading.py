"""Giving a model its compressed form before any data is read.

Transformers builds the model without data, calls us, and then reads every stored tensor into
the parameter of its name. So here, from the headers alone, each plain parameter is replaced
by parameters of exactly the stored shapes, on the meta device. Device maps are then exact,
offloading finds what it looks for, and nothing is decoded while loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tersor.format.checkpoint import Checkpoint
from tersor.format.constants import CODEC_RAW
from tersor.format.errors import MissingTensor, UsageError, WrongShape
from tersor.format.layout import stored_tensors
from tersor.format.shard import read_shard
from tersor.format.validate import Compressed, check_compressed
from tersor.integrations.transformers.converting import add_leaves, plan
from tersor.integrations.transformers.homes import Home, Homes
from tersor.integrations.transformers.surgery import Prepared, owner, parameter_dtypes, stack
from tersor.integrations.transformers.tying import partners, tie_parts, untie
from tersor.nn import compress

_STORED_DTYPES = {"U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32}


def open_files(files: Sequence[str] | None, config: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that Transformers resolved to these files; UsageError if they are not safetensors."""
    if not files or not all(str(file).endswith(".safetensors") for file in files):
        raise UsageError(
            "tersor loads safetensors checkpoints only: save the model once with save_pretrained, which writes "
            "them, and load that"
        )
    shards = tuple(read_shard(Path(file)) for file in files)
    return Checkpoint(Path(files[0]).parent, shards, {"quantization_config": dict(config)}, None)


def prepare_compressed(
    model: Any, files: Sequence[str] | None, config: Mapping[str, Any], dtype: torch.dtype | None
) -> Prepared:
    """Prepare `model` for a compressed checkpoint."""
    original = config.get("original")
    if original is not None:
        method = original.get("quant_method") if isinstance(original, Mapping) else original
        raise UsageError(
            f"this model was quantised ({method!r}) before tersor compressed it, and Transformers must load it as "
            f"such: `tersor decompress` it and load the result"
        )
    checkpoint = check_compressed(open_files(files, config))
    entries = {name: e for name, e in checkpoint.entries.items() if e.codec != CODEC_RAW}
    homes = Homes(model).find(checkpoint.entries)
    _refuse_homeless(model, entries.keys() - homes.keys())
    touched = {id(homes[name].converter) for name in entries if name in homes} - {id(None)}
    stacked = {n: h for n, h in homes.items() if id(h.converter) in touched and h.path is not None}
    converted = {n: h for n, h in homes.items() if id(h.converter) in touched and h.path is None}
    conversions = plan(converted)
    dtypes = parameter_dtypes(model, dtype)
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    stack(model, stacked, shapes, dtypes)
    add_leaves(model, conversions, shapes)

    leaves = {_leaf(home, name in converted): name for name, home in homes.items()}
    for leaf, name in leaves.items():
        if name in entries:
            _place(model, leaf, name, checkpoint, dtypes)
    for leaf, name in leaves.items():
        if name in entries:
            _tie(model, leaf, leaves, checkpoint, dtypes)
    _expect_guards(model, [leaf for leaf, name in leaves.items() if name in entries])
    replaced = {id(home.converter): home.converter for home in stacked.values()}
    return Prepared(tuple(replaced.values()), dtypes, conversions=tuple(conversions))


def _refuse_homeless(model: Any, names: Iterable[str]) -> None:
    """Raise for compressed tensors that the model has no place for, unless that is intended.

    It is for a class other than the saved one (a base model without its head), and for names
    that the model's class ignores.
    """
    if type(model).__name__ not in (getattr(model.config, "architectures", None) or ()):
        return
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    homeless = sorted(name for name in names if not any(pattern.search(name) for pattern in ignored))
    if homeless:
        raise MissingTensor(
            f"tensor {homeless[0]!r} (and {len(homeless) - 1} more): {type(model).__name__} has no such parameter; "
            f"does config.json belong to this checkpoint, and does this Transformers know the model?"
        )


def _leaf(home: Home, converted: bool) -> str:
    """The parameter that a tensor is read into."""
    return home.renamed if converted else home.leaf


def _place(
    model: Any, leaf: str, name: str, checkpoint: Compressed, dtypes: Mapping[str, torch.dtype]
) -> None:
    """Replace the plain parameter `leaf` by what is stored for the checkpoint's tensor `name`."""
    entry, (module, parameter) = checkpoint.entries[name], owner(model, leaf)
    plain = module.get_parameter(parameter)
    if tuple(plain.shape) != entry.shape:
        raise WrongShape(
            f"tensor {name!r} is {list(entry.shape)}, and {leaf!r} of {type(model).__name__} is "
            f"{list(plain.shape)}; is config.json that of this checkpoint?"
        )
    parts = {}
    for here, there in zip(stored_tensors(parameter, entry), stored_tensors(name, entry), strict=True):
        if not here.optional:
            shape = checkpoint.shard_of[there.name].tensors[there.name].shape
            parts[here.name] = torch.empty(shape, dtype=_STORED_DTYPES[here.dtype], device="meta")
    compress(module, parameter, entry, parts, dtypes.get(leaf, plain.dtype))


def _tie(
    model: Any,
    leaf: str,
    leaves: Mapping[str, str],
    checkpoint: Compressed,
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Make the parameters tied to the compressed `leaf` compressed too; leaves: parameter -> tensor's name."""
    name, others = leaves[leaf], partners(model, leaf)
    for partner in others:
        if partner not in leaves:
            _place(model, partner, name, checkpoint, dtypes)
        elif checkpoint.entries[leaves[partner]].codec == CODEC_RAW:
            untie(model, partner)
    if others:
        tie_parts(model, leaf, checkpoint.entries[name])


def _expect_guards(model: Any, leaves: Iterable[str]) -> None:
    """Let Transformers pass over the guards, which now match no parameter, without a warning.

    It wants regular expressions; numbers are made a class of their own, so that a thousand
    experts are one expression.
    """
    patterns = {re.sub(r"\\?\d+", lambda _: r"\d+", re.escape(leaf)) for leaf in leaves}
    known = set(model._keys_to_ignore_on_load_unexpected or ())
    model._keys_to_ignore_on_load_unexpected = known | {f"^{pattern}$" for pattern in patterns}
