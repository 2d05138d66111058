"""Tensor parallelism: refused, clearly, until a rank can cut its own tiles.

A plan would have Transformers shard one-dimensional byte arrays in the middle of a tile, or
install the communication around layers whose weights stayed whole. No hook of a quantizer is
told of a plan, so there are three places to stop it, each for what the one before lets by:
the model's own plan is replaced by a style that no version knows, `CompressedModule` refuses
sharded parameters, and a model that was distributed all the same is refused when it is loaded.
"""

from __future__ import annotations

from typing import Any

import torch

REFUSAL = (
    "tensor parallelism cannot shard compressed weights yet; load without a tensor-parallel plan, or "
    "`tersor decompress` the checkpoint and load that"
)


def refuse_plans(model: Any) -> None:
    """Before loading, where several processes run: put the refusal where the plan's styles are looked up."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        for plan in ("_tp_plan", "_ep_plan"):  # 5.17 has no second one
            if hasattr(model, plan):
                setattr(model, plan, {"*": REFUSAL})


def refuse_distributed(model: Any) -> None:
    """After loading: raise if Transformers distributed the model."""
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise NotImplementedError(f"{type(model).__name__}: {REFUSAL}")
