"""A model larger than memory: blocks come from the checkpoint when the walk reaches them, and go again.

The model is built without storage (on torch's meta device); embeddings, norms and head are loaded at
once, since they are needed to begin; each block is read when the walk enters it and dropped when the
walk leaves. What was quantised lives in the job's `Store`. So memory holds one block, the parts outside
blocks and the hidden states, whatever the number of blocks.

Tensors are looked up by the names of the model's own parameters, perhaps behind a prefix that the
checkpoint lacks (a base model's file) or adds. Where Transformers renames or fuses tensors while loading
(experts of a mixture), the names do not meet; that is an error here, and such a model is loaded whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tersor.format.checkpoint import open_checkpoint
from tersor.format.errors import MissingDependency, UsageError
from tersor.quantize.blocks import find_stacks


class Lazy:
    """The tensors of a checkpoint by parameter name, read when asked for."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        checkpoint = open_checkpoint(self.directory)
        self._files = {name: shard.path for shard, name in checkpoint.tensors()}

    def read(self, name: str) -> Tensor:
        """One tensor. Raises `UsageError` when the checkpoint has none of this name."""
        found = self._find(name)
        if found is None:
            raise UsageError(
                f"{self.directory} holds no tensor {name}: its names differ from the model's, so it cannot "
                f"be read block by block; load the model whole"
            )
        with safe_open(self._files[found], "pt") as file:
            tensor: Tensor = file.get_tensor(found)
        return tensor

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self._find(name) is not None

    def _find(self, name: str) -> str | None:
        if name in self._files:
            return name
        short = name.partition(".")[2]
        longer = [known for known in self._files if known.endswith("." + name)]
        return short if short in self._files else longer[0] if len(longer) == 1 else None

    def enter(self, name: str, block: nn.Module, device: torch.device | str) -> None:
        """Give a block that has no storage its weights, on `device`."""
        block.to_empty(device=device)
        with torch.no_grad():
            for key, tensor in block.state_dict(keep_vars=True).items():
                tensor.copy_(self.read(f"{name}.{key}"))

    def leave(self, name: str, block: nn.Module) -> None:
        """Drop a block's weights."""
        block.to("meta")


def open_lazily(directory: str | Path, dtype: torch.dtype | None = None) -> tuple[Any, Lazy]:
    """A causal language model whose blocks have no storage yet, and what gives it to them.

    `dtype` is what to hold the weights in; by default the model's own. Raises `MissingDependency` without
    transformers and accelerate, and `UsageError` for checkpoints whose names are not the model's.
    """
    try:
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise MissingDependency(
            f"{error.name} is needed to open a model; pip install 'tersor[hf]'"
        ) from error
    lazy = Lazy(directory)
    config = AutoConfig.from_pretrained(directory)
    with init_empty_weights(include_buffers=False):  # rotary tables are computed, not stored
        build: Any = AutoModelForCausalLM.from_config  # untyped there
        model = build(config, dtype=dtype or getattr(config, "dtype", None))
    model.tie_weights()
    inside = tuple(stack.name + "." for stack in find_stacks(model))
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, parameter in list(model.named_parameters()):
        if not name.startswith(inside) and name not in tied:
            owner, _, leaf = name.rpartition(".")
            tensor = lazy.read(name).to(parameter.dtype)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    model.tie_weights()
    return model.eval(), lazy
