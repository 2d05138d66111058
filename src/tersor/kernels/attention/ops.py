"""The torch operator of attention in a decode step.

    decode_attention(q, keys, values, position, scale) -> (1, heads, 1, head_dim)

    q          bfloat16 (1, heads, 1, head_dim), the new token's queries
    keys       bfloat16 (1, key/value heads, capacity, head_dim), a static cache that holds the new token's already
    values     likewise
    position   int64, one element on the same device: keys 0 to `position` are attended to
    scale      of the products of queries and keys

softmax(scale q k^T) v, in float32, rounded once; `device.takes` says for which shapes a GPU has a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.attention import device

_library = torch.library.Library("tersor", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "decode_attention(Tensor q, Tensor keys, Tensor values, Tensor position, float scale) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _cpu(q: Tensor, keys: Tensor, values: Tensor, position: Tensor, scale: float) -> Tensor:
    filled, group = int(position) + 1, q.shape[1] // keys.shape[1]
    k, v = (x[:, :, :filled].float().repeat_interleave(group, dim=1) for x in (keys, values))
    weights = (q.float() @ k.transpose(2, 3) * scale).softmax(-1)
    return (weights @ v).to(q.dtype)


def _fake(q: Tensor, keys: Tensor, values: Tensor, position: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)


_library.impl("decode_attention", _cpu, "CPU")  # type: ignore[no-untyped-call]
_library.impl("decode_attention", device.decode_attention, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("tersor::decode_attention", _fake, lib=_library)
