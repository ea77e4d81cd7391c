"""Scaled dot-product attention, in the form that TensorRT fuses: two products around a softmax in float32."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch

from torch2trt.converters.plugins import plugin
from torch2trt.converters.registry import converter
from torch2trt.graph.ops import ATTENTION, ROTARY
from torch2trt.graph.plugged_ops import FLASH_ATTENTION, PACKED_ATTENTION, SHORT_ATTENTION
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_LOWEST = torch.finfo(torch.float32).min
_HEADS_AND_TOKENS = (0, 2, 1, 3)


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
    zero_blind = attn_mask is not None and _may_be_blind(attn_mask)
    return _attend(
        net, query, key, value, scale, enable_gqa, mask=attn_mask, is_causal=is_causal, zero_blind=zero_blind
    )


def _flash_unsupported(*, used: Collection[int] = (), **arguments: Any) -> str | None:
    if 1 in used:
        return "the logarithms of the sums in the softmax, which are for the gradient"
    return _unsupported(**arguments, enable_gqa=False)


@converter(aten._scaled_dot_product_flash_attention_for_cpu.default, unsupported=_flash_unsupported)
def _scaled_dot_product_flash_attention_for_cpu(
    net: Network,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool,
    attn_mask: Tensor | None,
    scale: float | None,
    **_: Any,
) -> tuple[Tensor, None]:
    """_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, ...) -> (Tensor, Tensor)

    Torch's decomposition returns the softmax in the place of the second result.
    """
    return scaled_dot_product_attention(net, query, key, value, attn_mask, is_causal, scale, enable_gqa=False), None


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


@converter(ROTARY)
def rotary(net: Network, input: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """rotary(Tensor input, Tensor cos, Tensor sin) -> Tensor"""
    count, size = cos.shape[-1], input.shape[-1]
    assert isinstance(count, int)
    half = count // 2
    turned = net.narrow(input, -1, 0, count)
    swapped = net.concat([net.narrow(input, -1, half, half), net.narrow(input, -1, 0, half)], -1)
    products = (net.elementwise("PROD", turned, cos), net.elementwise("PROD", swapped, sin))
    result = net.elementwise("SUM", *products)
    return result if count == size else net.concat([result, net.narrow(input, -1, count, size - count)], -1)


# Only where TensorRT has plugins does a pass make these.
plugin(FLASH_ATTENTION, half=True)
plugin(PACKED_ATTENTION, half=True)
plugin(SHORT_ATTENTION, half=True)


def _attend(
    net: Network,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    enable_gqa: bool,
    *,
    mask: Tensor | None,
    is_causal: bool = False,
    zero_blind: bool = False,
) -> Tensor:
    """Attention; the result is zero for queries that may attend to nothing where ``zero_blind`` asks for it."""
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    shape, share = query.shape, 1
    if enable_gqa:
        heads = query.shape[-3]
        groups = math.lcm(key.shape[-3], value.shape[-3])
        key, value = (_repeat_heads(net, tensor, groups) for tensor in (key, value))
        share = heads // groups
        if share > 1:
            # The queries that share keys become rows of one product: nothing is repeated but a mask.
            query = net.reshape(query, (*shape[:-3], groups, share * shape[-2], shape[-1]))
            mask = None if mask is None else _fold(net, mask, heads, share, shape[-2])
    # BF16 has too few digits for the scaled query, and the range for unscaled scores; FP16 the other way round.
    scale_scores = query.dtype == torch.bfloat16
    if not scale_scores:
        query = net.binary("PROD", query, scale)
    scores = net.cast(net.matmul(query, key, transpose_second=True), torch.float32)
    if scale_scores:
        scores = net.binary("PROD", scores, scale)
    if is_causal:
        future = _future(net, shape[-2], scores.shape[-1], share)
        scores = net.select(future, net.constant(torch.tensor(_LOWEST)), scores)
    elif mask is not None and mask.dtype == torch.bool and not zero_blind:
        # What TensorRT 10.6 has its fastest kernels for.
        scores = net.select(mask, scores, net.constant(torch.tensor(_LOWEST)))
    elif mask is not None:
        scores = net.elementwise("SUM", scores, _added(net, mask))
    weights = net.cast(net.softmax(scores, -1), value.dtype)
    if mask is not None and zero_blind:
        # The weights of all other queries are 0 here already. With this, adding the mask is the faster way.
        weights = net.select(_seen(net, mask), weights, net.constant(torch.zeros((), dtype=weights.dtype)))
    result = net.matmul(weights, value)
    return net.reshape(result, (*result.shape[:-3], *shape[-3:-1], value.shape[-1])) if share > 1 else result


def _added(net: Network, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return net.cast(mask, torch.float32)
    return net.select(mask, net.constant(torch.tensor(0.0)), net.constant(torch.tensor(_LOWEST)))


def _may_be_blind(mask: Tensor) -> bool:
    """Whether a query may attend to nothing, unless it is known that every one may attend to some key."""
    if mask.value is None:
        return True
    seen = mask.value if mask.dtype == torch.bool else mask.value > -math.inf
    return not seen.any(-1).all()


def _seen(net: Network, mask: Tensor) -> Tensor:
    """Which keys each query may attend to."""
    if mask.dtype == torch.bool:
        return mask
    return net.elementwise("GREATER", mask, net.constant(torch.tensor(-math.inf, dtype=mask.dtype)))


def _future(net: Network, queries: Size, keys: Size, share: int) -> Tensor:
    """[share * queries, keys]: keys that come after the query, both counted from the first (the upper left corner)."""
    query, key = (net.iota(0, 1, size, torch.int32) for size in (queries, keys))
    if share > 1 and query.value is not None:
        query = net.constant(query.value.repeat(share))
    elif share > 1:
        query = net.reshape(net.expand(query, (share, queries)), (share * queries,))
    return net.elementwise("GREATER", key, net.unsqueeze(query, 1))


def _fold(net: Network, mask: Tensor, heads: int, share: int, queries: Size) -> Tensor:
    """A mask [..., heads or 1, queries or 1, keys] for scores whose rows are the queries of ``share`` heads in turn."""
    known = ("folded mask", mask, heads, share, queries)
    if known not in net.shared:
        net.shared[known] = _folded(net, net.to_rank(mask, max(mask.rank, 3)), heads, share, queries)
    return net.shared[known]  # type: ignore[no-any-return]


def _folded(net: Network, mask: Tensor, heads: int, share: int, queries: Size) -> Tensor:
    *outer, own_heads, rows, keys = mask.shape
    if own_heads == 1 and rows == 1:
        return mask
    if own_heads == 1:
        tiled = net.expand(mask, (*outer, share, rows, keys))
        return net.reshape(tiled, (*outer, 1, share * rows, keys))
    each = net.expand(mask, (*outer, heads, queries, keys))
    return net.reshape(each, (*outer, heads // share, share * queries, keys))


def _repeat_heads(net: Network, tensor: Tensor, heads: int) -> Tensor:
    """[..., groups, tokens, size] with each head repeated for the queries of its group, up to this many."""
    *outer, groups, tokens, size = tensor.shape
    if groups == heads:
        return tensor
    repeated = net.expand(net.unsqueeze(tensor, -3), (*outer, groups, heads // groups, tokens, size))
    return net.reshape(repeated, (*outer, heads, tokens, size))
