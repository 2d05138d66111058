"""What `save_pretrained` writes: again a checkpoint that keeps every rule of FORMAT.md.

Transformers removes tied duplicates, turns the model's names back into those on disk, cuts
the state dict into shards and writes the metadata we give it into each. Ours to add are the
guards and the manifest, and the manifest wants the names on disk: so the same reversal is run
here first. A shard's manifest may describe tensors of other shards, hence one for all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.accelerate import load_offloaded_parameter

from tersor.format.constants import CODEC_RAW, MANIFEST_KEY
from tersor.format.errors import UnknownDtype
from tersor.format.manifest import TensorEntry, dump_manifest
from tersor.integrations.transformers.encoding import UNHASHED, sha256
from tersor.integrations.transformers.renaming import with_parts
from tersor.kernels.ops import SAFETENSORS_DTYPES, torch_dtype
from tersor.nn import CompressedModule, Stored
from tersor.nn.fused import Fused

_SPELLINGS = {
    **SAFETENSORS_DTYPES,
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float64: "F64",
    torch.complex64: "C64",
}


def state_dict_and_metadata(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict with guards (names of the model), and the metadata with the manifest (names on disk)."""
    model._weight_conversions = with_parts(model._weight_conversions or ())  # the reversal shall reach parts
    tied = model.all_tied_weights_keys
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    stored: dict[str, TensorEntry] = {}
    parts: set[str] = set()
    for path, module in model.named_modules():
        for source in module.compressed.values() if isinstance(module, CompressedModule) else ():
            prefix = f"{path}." if path else ""
            if not isinstance(source, Stored | Fused) or prefix + source.held[0] not in state:
                continue  # a stack of what is stored elsewhere; tied to one that is there
            entry = _hashed(source, module)
            if isinstance(source, Fused):
                source = _at_rest(source, module, prefix, state)
            stored[prefix + source.name] = entry
            parts |= {prefix + name for name in source.held}
    # storage of its own for each: Transformers takes tensors at one address for tied ones
    guards = {name: torch.empty(1, dtype=torch.uint8)[:0] for name in stored}
    entries = {on_disk: stored[name] for on_disk, name in _names_on_disk(model, guards).items()}
    plain = {name: _present(model, name, tensor) for name, tensor in state.items() if name not in parts}
    entries |= {name: _raw_entry(name, t) for name, t in revert_weight_conversion(model, plain).items()}
    return state | guards, {MANIFEST_KEY: dump_manifest(entries)}


def _hashed(source: Stored | Fused, module: Any) -> TensorEntry:
    """The entry of a tensor, with its hash."""
    if source.entry.sha256 != UNHASHED:
        return source.entry
    plain = source.cast(torch_dtype(source.entry.dtype)).decode(module)
    return replace(source.entry, sha256=sha256(plain))


def _at_rest(source: Fused, module: Any, prefix: str, state: dict[str, torch.Tensor]) -> Stored:
    """Put a weight's form at rest into `state` in place of its layout on the GPU."""
    for name in source.held:
        del state[prefix + name]
    stored, parts = source.stored(module)
    state |= {prefix + name: part for name, part in parts.items()}
    return stored


def _names_on_disk(model: Any, guards: dict[str, torch.Tensor]) -> dict[str, str]:
    """Name on disk -> name in the model, followed through the reversal by each guard's identity."""
    names = {id(guard): name for name, guard in guards.items()}
    return {
        on_disk: names[id(guard)] for on_disk, guard in revert_weight_conversion(model, dict(guards)).items()
    }


def _present(model: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, brought in if it is offloaded."""
    if tensor.device.type != "meta":
        return tensor
    loaded: torch.Tensor = load_offloaded_parameter(model, name)
    return loaded


def _raw_entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    if tensor.dtype not in _SPELLINGS:
        raise UnknownDtype(f"tensor {name!r}: safetensors has no name for {tensor.dtype}")
    return TensorEntry(CODEC_RAW, _SPELLINGS[tensor.dtype], tuple(tensor.shape), sha256(tensor))
