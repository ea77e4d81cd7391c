"""Running products, extremes and logarithms of sums along a dimension.

Every element is combined with the one a step before it, then two, four, eight steps: that many rounds as the size has
bits, each of a few layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch2trt.converters.activations import log_one_plus_exp
from torch2trt.converters.ranking import places_along
from torch2trt.converters.registry import converter
from torch2trt.sizes import TensorSpec
from torch2trt.trt.core import BYTES
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

Combine = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def _running(
    net: Network, tensors: Sequence[Tensor], axis: int, neutral: Sequence[float], combine: Combine
) -> Sequence[Tensor]:
    """Along an axis, what combining each element with all before it gives.

    Args:
        tensors: of one shape, the parts of an element.
        neutral: by part, what stands before the first element.
        combine: of earlier and later elements; associative.
    """
    rank = tensors[0].rank
    size = tensors[0].shape[axis]
    assert isinstance(size, int)
    reach = 1
    while reach < size:
        before, after = ([sign * reach if at == axis % rank else 0 for at in range(rank)] for sign in (1, -1))
        earlier = [net.pad(part, before, after, value=fill) for part, fill in zip(tensors, neutral, strict=True)]
        tensors, reach = combine(earlier, tensors), 2 * reach
    return tensors


def _unsupported(input: TensorSpec, dim: int, **_: Any) -> str | None:
    if input.rank and not isinstance(input.shape[dim], int):
        return "a running result along a dynamic dimension, other than a sum or a product"
    return None


@converter(aten.cumprod.default)
def cumprod(net: Network, input: Tensor, dim: int, **_: Any) -> Tensor:
    """cumprod(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    dtype = net.result.dtype
    factors = net.cast(input, dtype)
    factors = net.cast(factors, torch.float32 if dtype.is_floating_point else torch.int64)
    if not factors.rank:
        return net.cast(factors, dtype)
    size = factors.shape[dim]
    if isinstance(size, int):
        (result,) = _running(net, [factors], dim, [1], lambda a, b: [net.elementwise("PROD", a[0], b[0])])
        return net.cast(result, dtype)
    rows = net.transpose(factors, dim, factors.rank - 1)
    up_to = net.triangle(size, size, 0, upper=True)
    each = net.select(up_to, net.unsqueeze(rows, -1), net.tensor(1, rows.dtype))
    result = net.reduce("PROD", each, [-2], False)
    return net.cast(net.transpose(result, dim, factors.rank - 1), dtype)


def _cumulative_extreme(*, largest: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def converted(net: Network, input: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if input.rank == 0:
            return input, net.tensor(0)
        if input.dtype == torch.bool or input.dtype in BYTES:
            values, places = converted(net, net.cast(input, torch.int32), dim)
            return net.cast(values, input.dtype), places
        is_float = input.dtype.is_floating_point
        lowest = -math.inf if is_float else torch.iinfo(input.dtype).min
        highest = math.inf if is_float else torch.iinfo(input.dtype).max

        def later_wins(earlier: Sequence[Tensor], later: Sequence[Tensor]) -> Sequence[Tensor]:
            # Equal ones do, and NaN; a number does not win from NaN, with which nothing compares.
            wins = net.elementwise("GREATER" if largest else "LESS", later[0], earlier[0])
            wins = net.elementwise("OR", wins, net.elementwise("EQUAL", later[0], earlier[0]))
            if is_float:
                wins = net.elementwise("OR", wins, net.unary("ISNAN", later[0]))
            return [net.select(wins, *pair) for pair in zip(later, earlier, strict=True)]

        parts = [input, net.expand(places_along(net, input, dim), input.shape)]
        values, places = _running(net, parts, dim, [lowest if largest else highest, 0], later_wins)
        return values, net.cast(places, torch.int64)

    return converted


converter(aten.cummax.default, unsupported=_unsupported)(_cumulative_extreme(largest=True))
converter(aten.cummin.default, unsupported=_unsupported)(_cumulative_extreme(largest=False))


@converter(aten.logcumsumexp.default, unsupported=_unsupported)
def logcumsumexp(net: Network, input: Tensor, dim: int) -> Tensor:
    """logcumsumexp(Tensor self, int dim) -> Tensor"""
    if input.rank == 0:
        return input

    def log_sum(earlier: Sequence[Tensor], later: Sequence[Tensor]) -> Sequence[Tensor]:
        # max + log(1 + exp(-|difference|)); equal infinities have no difference.
        (first,), (second,) = earlier, later
        distance = net.unary("NEG", net.unary("ABS", net.elementwise("SUB", first, second)))
        same = net.elementwise("EQUAL", first, second)
        distance = net.select(same, net.tensor(0.0, torch.float32), distance)
        return [net.elementwise("SUM", net.elementwise("MAX", first, second), log_one_plus_exp(net, distance))]

    (result,) = _running(net, [net.cast(input, torch.float32)], dim, [-math.inf], log_sum)
    return net.cast(result, input.dtype)
