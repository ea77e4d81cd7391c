"""Reductions: sums, extremes, moments, norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import volume
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

Dims = int | Sequence[int] | None


def _axes(dim: Dims) -> Sequence[int]:
    """Dimensions as a list; none means all."""
    return [dim] if isinstance(dim, int) else dim or []


def accumulated(net: Network, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in the type it is summed in: at least 32 bits of float, or int64."""
    if dtype is not None:
        tensor = net.cast(tensor, dtype)
    if tensor.dtype in FLOAT_DTYPES:
        return net.cast(tensor, torch.float32)
    return net.cast(tensor, torch.int64)


# -- sums --------------------------------------------------------------------------------------------------------------


def _reduction(operation: str) -> Callable[..., Tensor]:
    def reduce(
        net: Network,
        input: Tensor,
        dim: Dims = None,
        keepdim: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        result = net.reduce(operation, accumulated(net, input, dtype), _axes(dim), keepdim)
        return net.cast(result, net.result.dtype)

    return reduce


converter(aten.sum.default, aten.sum.dim_IntList)(_reduction("SUM"))
converter(aten.mean.default, aten.mean.dim)(_reduction("AVG"))
converter(aten.prod.default, aten.prod.dim_int)(_reduction("PROD"))


@converter(aten.cumsum.default)
def cumsum(net: Network, input: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
    """cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    sums = accumulated(net, input, dtype)
    if sums.rank:
        sums = net.cumulative_sum(sums, dim)
    return net.cast(sums, net.result.dtype)


@converter(aten.count_nonzero.default, aten.count_nonzero.dim_IntList)
def count_nonzero(net: Network, input: Tensor, dim: Dims) -> Tensor:
    """count_nonzero(Tensor self, int? dim=None) -> Tensor"""
    return net.reduce("SUM", net.cast(net.cast(input, torch.bool), torch.int64), _axes(dim), False)


# -- extremes and logic ------------------------------------------------------------------------------------------------


def _extreme(operation: str) -> Callable[..., Tensor]:
    def extreme(net: Network, input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return net.reduce(operation, input, _axes(dim), keepdim)

    return extreme


converter(aten.amax.default, aten.max.default)(_extreme("MAX"))
converter(aten.amin.default, aten.min.default)(_extreme("MIN"))


@converter(aten.aminmax.default)
def aminmax(net: Network, input: Tensor, dim: int | None, keepdim: bool) -> tuple[Tensor, ...]:
    """aminmax(Tensor self, *, int? dim=None, bool keepdim=False) -> (Tensor min, Tensor max)"""
    return tuple(net.reduce(operation, input, _axes(dim), keepdim) for operation in ("MIN", "MAX"))


def _logical(operation: str) -> Callable[..., Tensor]:
    def logical(net: Network, input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
        # Of bytes torch returns bytes.
        return net.cast(net.reduce(operation, net.cast(input, torch.bool), _axes(dim), keepdim), net.result.dtype)

    return logical


converter(aten.any.default, aten.any.dim, aten.any.dims)(_logical("MAX"))
converter(aten.all.default, aten.all.dim, aten.all.dims)(_logical("MIN"))


# -- moments -----------------------------------------------------------------------------------------------------------


def _moments(net: Network, input: Tensor, dim: Dims, correction: float, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Variance and mean, in float32."""
    wide = net.cast(input, torch.float32)
    mean = net.reduce("AVG", wide, _axes(dim), True)
    distance = net.elementwise("SUB", wide, mean)
    squares = net.reduce("SUM", net.elementwise("PROD", distance, distance), _axes(dim), keepdim)
    axes = {axis % input.rank for axis in _axes(dim)} or range(input.rank) if input.rank else ()
    count = volume(input.shape[axis] for axis in axes)
    freedom = net.binary("MAX", net.binary("SUB", net.tensor(count, torch.float32), correction), 0.0)
    mean = mean if keepdim else net.reshape(mean, squares.shape)
    return net.elementwise("DIV", squares, freedom), mean


def _spread(*, root: bool, mean: bool) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    def converted(
        net: Network,
        input: Tensor,
        dim: Dims = None,
        unbiased: bool = True,
        correction: float | None = None,
        keepdim: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        correction = float(unbiased) if correction is None else correction
        spread, center = _moments(net, input, dim, correction, keepdim)
        if root:
            spread = net.unary("SQRT", spread)
        spread = net.cast(spread, input.dtype)
        return (spread, net.cast(center, input.dtype)) if mean else spread

    return converted


for _name, _root, _mean in (
    ("var", False, False),
    ("std", True, False),
    ("var_mean", False, True),
    ("std_mean", True, True),
):
    _packet = getattr(aten, _name)
    converter(_packet.default, _packet.dim, _packet.correction)(_spread(root=_root, mean=_mean))


# -- norms -------------------------------------------------------------------------------------------------------------


@converter(aten.linalg_vector_norm.default)
def linalg_vector_norm(
    net: Network, input: Tensor, ord: float, dim: Dims, keepdim: bool, dtype: torch.dtype | None
) -> Tensor:
    """linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *, dtype=None) -> Tensor"""
    magnitude = net.unary("ABS", net.cast(input, torch.float32))
    axes = _axes(dim)
    if ord == math.inf:
        result = net.reduce("MAX", magnitude, axes, keepdim)
    elif ord == -math.inf:
        result = net.reduce("MIN", magnitude, axes, keepdim)
    elif ord == 0:
        result = net.reduce("SUM", net.cast(net.cast(magnitude, torch.bool), torch.float32), axes, keepdim)
    elif ord == 1:
        result = net.reduce("SUM", magnitude, axes, keepdim)
    elif ord == 2:
        squares = net.elementwise("PROD", magnitude, magnitude)
        result = net.unary("SQRT", net.reduce("SUM", squares, axes, keepdim))
    else:
        result = net.reduce("SUM", net.binary("POW", magnitude, float(ord)), axes, keepdim)
        result = net.binary("POW", result, 1 / ord)
    return net.cast(result, net.result.dtype)


@converter(
    *(getattr(aten.norm, name) for name in ("Scalar", "ScalarOpt_dim", "ScalarOpt_dim_dtype", "ScalarOpt_dtype"))
)
def norm(net: Network, input: Tensor, p: float | None, dim: Dims = None, keepdim: bool = False, **_: Any) -> Tensor:
    """norm.ScalarOpt_dim(Tensor self, Scalar? p, int[1] dim, bool keepdim=False) -> Tensor"""
    return linalg_vector_norm(net, input, 2 if p is None else p, dim, keepdim, None)
