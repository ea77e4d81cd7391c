"""Scaled dot-product attention, in the form that TensorRT fuses: two products around a softmax in float32."""

from __future__ import annotations

import math
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.graph.ops import ATTENTION
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
    scale: float | None,
    enable_gqa: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
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
    seen = None if attn_mask is None else _seen(net, attn_mask)
    return _attend(net, query, key, value, scale, enable_gqa, mask=attn_mask, seen=seen, is_causal=is_causal)


@converter(ATTENTION, unsupported=_unsupported)
def attention(
    net: Network,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """attention(Tensor query, Tensor key, Tensor value, Tensor attn_mask, float? scale, bool enable_gqa) -> Tensor"""
    return _attend(net, query, key, value, scale, enable_gqa, mask=attn_mask)


def _attend(
    net: Network,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    enable_gqa: bool,
    *,
    mask: Tensor | None,
    seen: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Attention, with a result of zero for the queries that may attend to nothing where ``seen`` says which do."""
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
    if is_causal:
        scores = net.select(_future(net, *scores.shape[-2:]), net.constant(torch.tensor(_LOWEST)), scores)
    elif mask is not None and mask.dtype == torch.bool and seen is None:
        # What TensorRT 10.6 has its fastest kernels for.
        scores = net.select(mask, scores, net.constant(torch.tensor(_LOWEST)))
    elif mask is not None:
        scores = net.elementwise("SUM", scores, _added(net, mask))
    weights = net.cast(net.softmax(scores, -1), value.dtype)
    if seen is not None:
        # The weights of all other queries are 0 here already. With this, adding the mask is the faster way.
        weights = net.select(seen, weights, net.constant(torch.zeros((), dtype=weights.dtype)))
    return net.matmul(weights, value)


def _added(net: Network, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return net.cast(mask, torch.float32)
    return net.select(mask, net.constant(torch.tensor(0.0)), net.constant(torch.tensor(_LOWEST)))


def _seen(net: Network, mask: Tensor) -> Tensor | None:
    """Which keys each query may attend to; None where it is known that every query may attend to some."""
    if mask.value is not None:
        seen = mask.value if mask.dtype == torch.bool else mask.value > -math.inf
        if seen.any(-1).all():
            return None
    if mask.dtype == torch.bool:
        return mask
    return net.elementwise("GREATER", mask, net.constant(torch.tensor(-math.inf, dtype=mask.dtype)))


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
