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
# What models pass on and does not change the result, here; anything else (softcap, sinks, a window) might.
_HARMLESS = frozenset(
    {"dropout", "is_causal", "use_cache", "cache_position", "position_embeddings"}
    | {"output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
)


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
    unknown = [name for name, given in kwargs.items() if given is not None and name not in _HARMLESS]
    plain = attention_mask is None and not unknown and key.shape == value.shape
    single = position_ids is not None and query.shape[0] == 1 and query.shape[2] == 1
    if not (plain and single and _kernel_for(query, key, value)):
        raise NotImplementedError(
            f"{DECODE_ATTENTION} serves single tokens and plain softmax attention without a mask "
            f"({', '.join(unknown) or 'shapes, types or positions do not fit'}); "
            "use set_attn_implementation('sdpa')"
        )
    assert position_ids is not None
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    position = position_ids.view(-1)[:1]
    out: Tensor = torch.ops.tersor.decode_attention(query, key, value, position, scale)
    return out.transpose(1, 2), None


def _kernel_for(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the operator can be given these: the configuration may say one thing, a layer do another."""
    if not query.is_cuda:
        return True
    same = query.dtype == key.dtype == value.dtype and key.is_contiguous() and value.is_contiguous()
    return same and device.takes(query.shape[1], key.shape[1], query.shape[3], query.dtype)


AttentionInterface.register(DECODE_ATTENTION, attention)
