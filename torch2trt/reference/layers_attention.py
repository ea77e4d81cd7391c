"""Layers of transformers: attention, rotary embedding, key and value caches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch2trt.reference.layers_pointwise import saturate
from torch2trt.reference.readback import Node
from torch2trt.reference.registry import layer


@layer("ATTENTION_OUTPUT", wide=True)
def attention(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    probability_scale: Tensor | None,
    key_lengths: Tensor | None,
) -> Tensor:
    """norm(query · keyᵀ + mask) · value, over [batch, heads, tokens, size]; TensorRT scales nothing."""
    api = node.api.attention
    for form in ("query_form", "key_value_form"):
        name = getattr(getattr(api, form, None), "name", "PADDED_BHND")
        if name != "PADDED_BHND":
            raise node.error(f"the interpreter knows no {name} layout")
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    seen = _seen(api, scores, key_lengths)
    softmax = api.norm_op.name == "SOFTMAX"
    scores = scores.masked_fill(~seen, -math.inf if softmax else 0.0)
    weights = scores.softmax(-1) if softmax else scores
    if probability_scale is not None:
        held = saturate(weights / probability_scale, api.normalization_quantize_to_type.name)
        if api.normalization_quantize_to_type.name == "FP8":
            held = held.to(torch.float8_e4m3fn).to(weights.dtype)
        weights = held * probability_scale
    return weights @ value


def _seen(api: Any, scores: Tensor, key_lengths: Tensor | None) -> Tensor:
    """Which keys each query may attend to, by order and by length."""
    queries, keys = scores.shape[-2:]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
    # Before 10.16 there is but a switch, which means the upper left.
    kind = api.causal_kind.name if hasattr(api, "causal_kind") else ("UPPER_LEFT" if api.causal else "NONE")
    if kind != "NONE":
        seen = seen.tril(keys - queries if kind == "LOWER_RIGHT" else 0)
    if key_lengths is not None:
        seen = seen & (torch.arange(keys, device=scores.device) < key_lengths.reshape(-1, 1, 1, 1))
    return seen


@layer("ROTARY_EMBEDDING", wide=True)
def rotary_embedding(node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rotates pairs of features of x [batch, heads, tokens, size] by an angle that depends on the token."""
    api = node.api
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned, rest = x.tensor_split([api.rotary_embedding_dim or x.shape[-1]], -1)
    if api.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([turned, rest], -1)


@layer("KV_CACHE_UPDATE")
def kv_cache_update(node: Node, cache: Tensor, update: Tensor, write_indices: Tensor) -> Tensor:
    """The cache with update [batch, heads, tokens, size] written from each item's index on."""
    form = getattr(getattr(node.api, "update_form", None), "name", "PADDED_BHND")
    if form != "PADDED_BHND":
        raise node.error(f"the interpreter knows no {form} layout")
    cache = cache.clone()
    for item, first in enumerate(write_indices.tolist()):
        room = max(0, min(update.shape[2], cache.shape[2] - first))
        cache[item, :, first : first + room] = update[item, :, :room]
    return cache
