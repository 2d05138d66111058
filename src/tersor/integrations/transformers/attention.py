"""Transformers' attention interface over `tersor::decode_attention`, for steps of one token with a static cache.

Registered under `DECODE_ATTENTION` without a mask function, so Transformers builds no mask: which keys count
follows from the new token's position alone. That is right for one sequence without padding whose cache keeps
everything, and `serves` says whether a model is like that; the decode loop then uses it for its steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import StaticLayer

from tersor.kernels.attention import device
from tersor.kernels.attention import ops as ops  # defines the operator

DECODE_ATTENTION = "tersor_decode"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some models pass on and the kernel does not know


def serves(model: Any, cache: Any) -> bool:
    """Whether steps of `model` may use it: on a GPU with clusters, bfloat16, a cache that forgets nothing."""
    config = model.config.get_text_config()
    parameter = next(model.parameters())
    heads = getattr(config, "num_attention_heads", 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return (
        parameter.device.type == "cuda"
        and torch.cuda.get_device_capability(parameter.device) >= device.CAPABILITY
        and config._attn_implementation == "sdpa"
        and all(type(layer) is StaticLayer for layer in cache.layers)
        and heads > 0
        and device.takes(
            heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads, model.dtype
        )
    )


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, 1, head_dim), key and value the whole cache: (1, 1, heads, head_dim)."""
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    plain = attention_mask is None and not unknown and key.shape == value.shape
    if not plain or position_ids is None or query.shape[2] != 1:
        raise NotImplementedError(
            f"{DECODE_ATTENTION} serves single tokens and plain softmax attention without a mask "
            f"({', '.join(unknown) or 'the shapes do not fit'}); use set_attn_implementation('sdpa')"
        )
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    position = position_ids.view(-1)[:1]
    out: Tensor = torch.ops.tersor.decode_attention(query, key, value, position, scale)
    return out.transpose(1, 2), None


AttentionInterface.register(DECODE_ATTENTION, attention)
