"""Putting stored forms and stacks of experts into a Transformers model that has no data yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.core_model_loading import build_glob_alternation

from tersor.format.errors import MissingTensor, WrongShape
from tersor.integrations.transformers.homes import Home, concatenated, projection
from tersor.nn import CompressedModule, ExpertStack, Stored, stack_experts


@dataclass(frozen=True)
class Prepared:
    """What the quantizer must remember of a model's preparation.

    replaced: converters whose work stacks of experts do now; dtypes: of the plain model's
    parameters; to_encode: parameters to compress when they are loaded;
    conversions: `converting.Conversion`s to run when all is loaded.
    """

    replaced: tuple[Any, ...] = ()
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    to_encode: frozenset[str] = frozenset()
    conversions: tuple[Any, ...] = ()


def owner(model: Any, name: str) -> tuple[torch.nn.Module, str]:
    """The module that has the parameter `name` of the model, and the parameter's name in it."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def parameter_dtypes(model: Any, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The dtype each parameter of the plain model would have: the requested one, less those kept in fp32."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters(remove_duplicate=False)}
    plan = model._get_dtype_plan(dtype) if dtype is not None else {}
    if plan:
        pattern, group_name, _ = build_glob_alternation(list(plan))
        for name in dtypes:
            match = pattern.search(name)
            if match and match.lastgroup:
                dtypes[name] = plan[group_name[match.lastgroup]]
    return dtypes


def cast_plain(model: Any, dtypes: Mapping[str, torch.dtype]) -> None:
    """Cast what was loaded in the checkpoint's dtype though another was asked for.

    Transformers 5.17 does not cast tensors that it renames when a quantizer is present; 5.23 does.
    """
    for name, parameter in model.named_parameters():
        wanted = dtypes.get(name, parameter.dtype)
        if parameter.dtype != wanted and parameter.is_floating_point() and not parameter.is_meta:
            parameter.data = parameter.data.to(wanted)


def check_stored(model: Any) -> None:
    """Raise a FormatError that names the first parameter whose stored arrays no kernel may decode."""
    for path, module in model.named_modules():
        for source in module.compressed.values() if isinstance(module, CompressedModule) else ():
            if isinstance(source, Stored):
                source.check(
                    module, f"{model.config.name_or_path}: tensor {f'{path}.{source.name}'.lstrip('.')!r}"
                )


def refuse_missing(model: Any) -> None:
    """Raise if a stored part was not found when loading: Transformers would only report it, and go on."""
    for path, module in model.named_modules():
        for source in module.compressed.values() if isinstance(module, CompressedModule) else ():
            for name, part in source.parts(module).items() if isinstance(source, Stored) else ():
                if not part.is_meta and not getattr(part, "_is_hf_initialized", False):  # meta: offloaded
                    raise MissingTensor(
                        f"parameter {f'{path}.{name}'!r} is compressed, and nothing was loaded for it: the name in "
                        f"the checkpoint is one this Transformers does not map to it; `tersor decompress` the "
                        f"checkpoint and load that"
                    )


def stack(
    model: Any,
    homes: Mapping[str, Home],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Replace the parameters that stack experts by one plain leaf for each tensor of the checkpoint.

    homes: of the tensors of the checkpoint that stacking converters match; shapes: theirs.
    """
    leaves: dict[str, dict[str, torch.Tensor]] = {}
    converters = {home.parameter: home.converter for home in homes.values()}
    for name, home in homes.items():
        assert home.path is not None
        leaf = torch.empty(shapes[name], dtype=dtypes[home.parameter], device="meta")
        leaves.setdefault(home.parameter, {})[home.path] = leaf
    for parameter, converter in converters.items():
        module, name = owner(model, parameter)
        shape, dim = tuple(module.get_parameter(name).shape), concatenated(converter)
        assert dim is not None
        tails = [projection(pattern) for pattern in converter.source_patterns]
        odd = leaves[parameter].keys() ^ {f"{index}.{tail}" for index in range(shape[0]) for tail in tails}
        if odd:
            raise MissingTensor(
                f"parameter {parameter!r}: checkpoint and configuration do not agree on expert tensor "
                f"{min(odd)!r}; is config.json that of this checkpoint?"
            )
        for index in range(shape[0]):
            made = torch.cat([leaves[parameter][f"{index}.{tail}"] for tail in tails], dim=dim).shape
            if tuple(made) != shape[1:]:
                raise WrongShape(
                    f"parameter {parameter!r}: expert {index} of the checkpoint is {list(made)}, the model expects "
                    f"{list(shape[1:])}; is config.json that of this checkpoint?"
                )
        projections = tuple(tail.rpartition(".")[0] for tail in tails)
        stack_experts(
            module, [ExpertStack(name, projections, dim, shape, dtypes[parameter])], leaves[parameter]
        )
