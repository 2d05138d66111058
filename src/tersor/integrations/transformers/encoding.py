"""Compressing tensors one by one as Transformers loads them.

Peak memory is the compressed model and one plain tensor. A tensor that is loaded to a GPU is encoded
there, a hundred times as fast; its hash, which would take the host longer than all else, is made
when the model is saved. Which tensors: those that reach
their parameter under a renaming, or stay leaves under a stack of experts, so that what is
saved later carries the names the checkpoint had. What other converters compute stays plain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.layout import BOOK, OFFSETS, TILES, wants_compression
from tersor.format.manifest import TensorEntry
from tersor.integrations.transformers.homes import Homes
from tersor.integrations.transformers.loading import open_files
from tersor.integrations.transformers.surgery import Prepared, owner, parameter_dtypes, stack
from tersor.integrations.transformers.tying import partners, tie_parts
from tersor.kernels.ops import safetensors_dtype
from tersor.nn import compress

UNHASHED = ""  # in the entry of a tensor whose hash is made when it is saved


def prepare_encoding(
    model: Any, files: Sequence[str] | None, config: Mapping[str, Any], dtype: torch.dtype | None
) -> Prepared:
    """Prepare `model` for a plain checkpoint, to be compressed while it is loaded."""
    extents = {n: e for shard in open_files(files, config).shards for n, e in shard.tensors.items()}
    homes = Homes(model).find(extents)
    eligible = {name for name in homes if wants_compression(extents[name].dtype, extents[name].shape)}
    converters: list[Any] = []
    for name in sorted(eligible):
        if homes[name].path is not None and homes[name].converter not in converters:
            converters.append(homes[name].converter)
    stacked = {name: home for name, home in homes.items() if home.converter in converters}
    dtypes = parameter_dtypes(model, dtype)
    stack(model, stacked, {n: extents[n].shape for n in stacked}, dtypes)

    loaded = {home.parameter for home in homes.values()}
    wanted = {homes[name].leaf for name in eligible if homes[name].converter in (None, *converters)}
    # a checkpoint that holds both sides of a tied pair, alike or not, is tied or not when both are there
    twice = {name for name in wanted if any(partner in loaded for partner in partners(model, name))}
    return Prepared(tuple(converters), dtypes, frozenset(wanted - twice))


class Encode(ConversionOps):
    """Transformers' step between reading a tensor and setting the parameter.

    dtypes: of the plain model's parameters; what is read may have another, and is cast when decoded.
    """

    def __init__(self, dtypes: Mapping[str, torch.dtype]) -> None:
        self.dtypes = dtypes

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """{parameter: plain tensor} -> {parameter of a stored part: tensor}; plain if it does not shrink."""
        model, name, missing = kwargs["model"], kwargs["full_layer_name"], kwargs["missing_keys"]
        value = input_dict[name]
        weight: torch.Tensor = value[0] if isinstance(value, list) else value
        there = encodes(weight.device)
        tiles, offsets, book = torch.ops.tersor.huffman_encode(weight if there else weight.cpu())
        if tiles.nbytes + offsets.nbytes + book.nbytes >= weight.nbytes:
            return {name: weight}
        digest = UNHASHED if there else sha256(weight)
        entry = TensorEntry(CODEC_HUFFMAN, safetensors_dtype(weight.dtype), tuple(weight.shape), digest)
        parts = {TILES: tiles, OFFSETS: offsets, BOOK: book}
        for parameter in (name, *partners(model, name)):
            _expect_parts(model, parameter, entry, parts, self.dtypes, missing)
        tie_parts(model, name, entry)
        loaded = {name + suffix: part.to(weight.device) for suffix, part in parts.items()}
        missing -= loaded.keys()
        return loaded


def _expect_parts(
    model: Any,
    parameter: str,
    entry: TensorEntry,
    parts: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    missing: set[str],
) -> None:
    """Replace the plain `parameter`, not loaded yet, by meta tensors of the stored shapes; parts: by suffix."""
    module, leaf = owner(model, parameter)
    plain = module.get_parameter(leaf)
    expected = {leaf + suffix: part.to("meta") for suffix, part in parts.items()}
    compress(module, leaf, entry, expected, dtypes.get(parameter, plain.dtype))
    missing.discard(parameter)
    missing |= {parameter + suffix for suffix in parts}


def encodes(device: torch.device) -> bool:
    """Whether tensors on this device are encoded there."""
    return device.type == "cuda"


def sha256(weight: torch.Tensor) -> str:
    """Of the tensor's bytes, row-major."""
    data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
