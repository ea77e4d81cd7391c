"""Scaled dot-product attention, in the form that TensorRT fuses: two products around a softmax in float32."""

from __future__ import annotations

import math
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_LOWEST = torch.finfo(torch.float32).min


def _unsupported(
    query: TensorSpec,
    key: TensorSpec,
    value: TensorSpec,
    attn_mask: TensorSpec | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> str | None:
    if dropout_p > 0:
        return f"dropout of attention weights (dropout_p {dropout_p})"
    if is_causal and attn_mask is not None:
        return "torch defines no attention that is causal and has a mask"
    if scale is None and not isinstance(query.shape[-1], int):
        return "the default scale of heads of a dynamic size"
    if enable_gqa and not all(isinstance(tensor.shape[-3], int) for tensor in (query, key, value)):
        return "grouped queries with a dynamic number of heads"
    return None


@converter(aten.scaled_dot_product_attention.default, unsupported=_unsupported)
def scaled_dot_product_attention(
    net: Network,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    **_: Any,
) -> Tensor:
    """scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, ...) -> Tensor"""
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    if enable_gqa:
        key, value = (_repeat_heads(net, tensor, query.shape[-3]) for tensor in (key, value))
    # BF16 has too few digits for the scaled query, and the range for unscaled scores; FP16 the other way round.
    scale_scores = query.dtype == torch.bfloat16
    if not scale_scores:
        query = net.binary("PROD", query, scale)
    scores = net.cast(net.matmul(query, key, transpose_second=True), torch.float32)
    if scale_scores:
        scores = net.binary("PROD", scores, scale)
    dead = None
    if is_causal:
        scores = net.select(_future(net, *scores.shape[-2:]), net.constant(torch.tensor(_LOWEST)), scores)
    elif attn_mask is not None:
        scores = _masked(net, scores, attn_mask)
        dead = _fully_masked(net, attn_mask)
    result = net.matmul(net.cast(net.softmax(scores, -1), value.dtype), value)
    if dead is None:
        return result
    return net.select(dead, net.constant(torch.zeros((), dtype=result.dtype)), result)


def _masked(net: Network, scores: Tensor, mask: Tensor) -> Tensor:
    """A boolean mask says where to attend, any other is added."""
    if mask.dtype == torch.bool:
        return net.select(mask, scores, net.constant(torch.tensor(_LOWEST)))
    return net.elementwise("SUM", scores, net.cast(mask, torch.float32))


def _fully_masked(net: Network, mask: Tensor) -> Tensor | None:
    """Which queries may attend to nothing, [..., 1]: torch's result is 0 there. None where it is known to be none."""
    if mask.value is not None:
        seen = mask.value if mask.dtype == torch.bool else mask.value > -math.inf
        if seen.any(-1).all():
            return None
    if mask.dtype == torch.bool:
        return net.unary("NOT", net.reduce("MAX", mask, [-1], keep_dims=True))
    highest = net.reduce("MAX", net.cast(mask, torch.float32), [-1], keep_dims=True)
    return net.elementwise("LESS", highest, net.constant(torch.tensor(_LOWEST)))


def _future(net: Network, queries: Size, keys: Size) -> Tensor:
    """[queries, keys]: keys that come after the query, both counted from the first (the upper left corner)."""
    query, key = (net.iota(0, 1, size, torch.int32) for size in (queries, keys))
    return net.elementwise("GREATER", key, net.unsqueeze(query, 1))


def _repeat_heads(net: Network, tensor: Tensor, heads: Size) -> Tensor:
    """[..., groups, tokens, size] with each head repeated for the queries of its group, up to this many."""
    *outer, groups, tokens, size = tensor.shape
    if groups == heads:
        return tensor
    repeated = net.expand(net.unsqueeze(tensor, -3), (*outer, groups, heads // groups, tokens, size))
    return net.reshape(repeated, (*outer, heads, tokens, size))
