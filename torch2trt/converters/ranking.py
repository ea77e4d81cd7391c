"""Where the largest and smallest elements are: argmax, top-k."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torch2trt.converters.reasons import not_of_selections
from torch2trt.converters.registry import converter
from torch2trt.sizes import Size
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

MOST_AT_ONCE = 3840
"""The elements that a TopK layer returns at most."""


def places_along(net: Network, tensor: Tensor, dim: int) -> Tensor:
    """Each element's INT32 position along a dimension, of size 1 in all others."""
    dim %= tensor.rank
    places = net.iota(0, 1, tensor.shape[dim], torch.int32)
    return net.reshape(places, [size if axis == dim else 1 for axis, size in enumerate(tensor.shape)])


def first_extreme(net: Network, input: Tensor, dim: int, largest: bool) -> Tensor:
    """The INT64 position of the extreme along a dimension, which keeps size 1: of equal ones, or of NaN, the first.

    TensorRT's TopK says nothing of equal ones.
    """
    places, size = places_along(net, input, dim), net.tensor(input.shape[dim], torch.int32)
    best = net.reduce("MAX" if largest else "MIN", input, [dim], True)
    found = net.select(net.elementwise("EQUAL", input, best), places, size)
    if not input.dtype.is_floating_point:
        return net.cast(net.reduce("MIN", found, [dim], True), torch.int64)
    # NaN comes before any number: its places lie below zero.
    found = net.select(net.unary("ISNAN", input), net.elementwise("SUB", places, size), found)
    found = net.reduce("MIN", found, [dim], True)
    # Of nothing but infinities TensorRT takes the largest finite number as the extreme.
    found = net.select(net.elementwise("EQUAL", found, size), net.tensor(0, torch.int32), found)
    found = net.select(net.binary("LESS", found, 0), net.elementwise("SUM", found, size), found)
    return net.cast(found, torch.int64)


def _argument(*, largest: bool) -> Callable[..., Tensor]:
    def argument(net: Network, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
        if input.rank == 0:
            return net.tensor(0)
        if dim is None:
            input, dim = net.flatten(input), 0
        return net.reshape(first_extreme(net, input, dim, largest), net.result.shape)

    return argument


converter(aten.argmax.default, unsupported=not_of_selections)(_argument(largest=True))
converter(aten.argmin.default, unsupported=not_of_selections)(_argument(largest=False))


def _extreme(*, largest: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def extreme(net: Network, input: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
        if input.rank == 0:
            return input, net.tensor(0)
        # TensorRT drops the layers of the result that nobody reads.
        values = net.reduce("MAX" if largest else "MIN", input, [dim], keepdim)
        indices = first_extreme(net, input, dim, largest)
        return values, indices if keepdim else net.squeeze(indices, dim)

    return extreme


converter(aten.max.dim, unsupported=not_of_selections)(_extreme(largest=True))
converter(aten.min.dim, unsupported=not_of_selections)(_extreme(largest=False))


def _topk_unsupported(k: Size, **_: object) -> str | None:
    if isinstance(k, int) and k > MOST_AT_ONCE:
        return f"TensorRT finds the first {MOST_AT_ONCE} at most, not {k}"
    return None


@converter(aten.topk.default, unsupported=_topk_unsupported)
def topk(net: Network, input: Tensor, k: Size, dim: int, largest: bool, sorted: bool) -> tuple[Tensor, Tensor]:
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor, Tensor)"""
    if input.rank == 0:
        return input, net.tensor(0)
    values, indices = net.top_k(input, k, dim, largest=largest)
    return values, net.cast(indices, torch.int64)
