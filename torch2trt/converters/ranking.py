"""Where the largest and smallest elements are: argmax, top-k, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

MOST_SORTED = 3840  # elements that a TopK layer returns


def _first(net: Network, input: Tensor, dim: int, largest: bool) -> Tensor:
    """The position of the extreme along a dimension, which keeps size 1."""
    if not largest and input.dtype.is_floating_point:
        # NaN ranks above all numbers, but torch has it for the smallest too.
        input = net.select(net.unary("ISNAN", input), net.tensor(-math.inf, input.dtype), input)
    _, indices = net.top_k(input, 1, dim, largest=largest)
    return net.cast(indices, torch.int64)


def _argument(*, largest: bool) -> Callable[..., Tensor]:
    def argument(net: Network, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
        if input.rank == 0:
            return net.tensor(0)
        if dim is None:
            input, dim = net.flatten(input), 0
        return net.reshape(_first(net, input, dim, largest), net.result.shape)

    return argument


converter(aten.argmax.default)(_argument(largest=True))
converter(aten.argmin.default)(_argument(largest=False))


def _extreme(*, largest: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def extreme(net: Network, input: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
        if input.rank == 0:
            return input, net.tensor(0)
        # TensorRT drops the layers of the result that nobody reads, and a reduction is the cheaper one.
        values = net.reduce("MAX" if largest else "MIN", input, [dim], keepdim)
        indices = _first(net, input, dim, largest)
        return values, indices if keepdim else net.squeeze(indices, dim)

    return extreme


converter(aten.max.dim)(_extreme(largest=True))
converter(aten.min.dim)(_extreme(largest=False))


def _topk_unsupported(k: Size, **_: object) -> str | None:
    return (
        f"TensorRT finds the first {MOST_SORTED} at most, not {k}" if isinstance(k, int) and k > MOST_SORTED else None
    )


@converter(aten.topk.default, unsupported=_topk_unsupported)
def topk(net: Network, input: Tensor, k: Size, dim: int, largest: bool, sorted: bool) -> tuple[Tensor, Tensor]:
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor, Tensor)"""
    if input.rank == 0:
        return input, net.tensor(0)
    values, indices = net.top_k(input, k, dim, largest=largest)
    return values, net.cast(indices, torch.int64)


def _sort_unsupported(input: TensorSpec, dim: int, **_: object) -> str | None:
    size = input.shape[dim] if input.rank else 1
    if not isinstance(size, int):
        return "sorts a dynamic dimension"
    return f"TensorRT sorts {MOST_SORTED} elements at most, not {size}" if size > MOST_SORTED else None


@converter(aten.sort.default, aten.sort.stable, unsupported=_sort_unsupported)
def sort(net: Network, input: Tensor, dim: int, descending: bool, **_: object) -> tuple[Tensor, Tensor]:
    """sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""
    return topk(net, input, input.shape[dim] if input.rank else 1, dim, descending, True)


@converter(aten.argsort.default, aten.argsort.stable, unsupported=_sort_unsupported)
def argsort(net: Network, input: Tensor, dim: int, descending: bool, **_: object) -> Tensor:
    """argsort(Tensor self, int dim=-1, bool descending=False) -> Tensor"""
    return sort(net, input, dim, descending)[1]
