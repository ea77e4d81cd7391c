"""Linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from torch2trt.converters.activations import activate
from torch2trt.converters.reasons import only_floats, products
from torch2trt.converters.registry import converter
from torch2trt.graph.ops import LINEAR_BLOCK
from torch2trt.sizes import DimRange, TensorSpec, volume
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _unsupported(*, factor: int = 0, summed: tuple[int, ...] = (-1,)) -> Callable[..., str | None]:
    """Why a product cannot be computed.

    Args:
        factor: which tensor is the first factor, or only one; the second follows.
        summed: its dimensions over which products are added up.
    """

    def unsupported(
        flavour: Flavour, ranges: Mapping[str, DimRange], results: Sequence[TensorSpec], **arguments: Any
    ) -> str | None:
        specs = [value for value in arguments.values() if isinstance(value, TensorSpec)]
        first, second = specs[factor : factor + 2]
        count = volume([*results[0].shape, *(first.shape[axis] for axis in summed)])
        if max(first.rank, second.rank) == 8 and first.dtype not in FLOAT_DTYPES:
            return "TensorRT tensors have at most 8 dimensions, and products of integers take one"
        return products(count, specs, flavour, ranges)

    return unsupported


@converter(aten.linear.default, unsupported=_unsupported())
def linear(net: Network, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"""
    result = net.matmul(input, weight, transpose_second=weight.rank == 2)
    return result if bias is None else net.elementwise("SUM", result, bias)


@converter(LINEAR_BLOCK, unsupported=only_floats)
def linear_block(
    net: Network, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, alpha: float, beta: float
) -> Tensor:
    """linear_block(Tensor input, Tensor weight, Tensor? bias, str activation, float alpha, float beta) -> Tensor"""
    # As one matrix: TensorRT 10.6 fuses the activation into a product of rank 2; with GELU after one of rank 3 its
    # build hangs or crashes.
    *leading, channels = input.shape
    rows = input if input.rank <= 2 else net.reshape(input, (volume(leading), channels))
    result = activate(net, linear(net, rows, weight, bias), activation, alpha, beta)
    return net.reshape(result, (*leading, weight.shape[0]))


@converter(
    *(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default),
    unsupported=_unsupported(),
)
def matmul(net: Network, **factors: Tensor) -> Tensor:
    """matmul(Tensor self, Tensor other) -> Tensor"""
    return net.matmul(*factors.values())


def addmm(net: Network, input: Tensor, beta: float, alpha: float, **factors: Tensor) -> Tensor:
    """addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    product = net.matmul(*factors.values())
    if product.rank > net.result.rank:
        product = net.reduce("SUM", product, [0], keep_dims=False)  # addbmm
    if alpha != 1:
        product = net.binary("PROD", product, alpha)
    if beta == 0:
        return product  # even where the input is not a number
    return net.elementwise("SUM", net.binary("PROD", input, beta) if beta != 1 else input, product)


converter(*(aten.addmm.default, aten.addmv.default, aten.baddbmm.default), unsupported=_unsupported(factor=1))(addmm)
converter(aten.addbmm.default, unsupported=_unsupported(factor=1, summed=(0, -1)))(addmm)


@converter(aten.bilinear.default, unsupported=only_floats)
def bilinear(net: Network, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """bilinear(Tensor input1, Tensor input2, Tensor weight, Tensor? bias=None) -> Tensor"""
    # [*, m] @ [m, k * n] as [*, k, n], and that @ [*, n, 1].
    outputs, first, second = weight.shape
    matrix = net.reshape(net.permute(weight, (1, 0, 2)), (first, outputs * second))
    rows = net.reshape(net.matmul(input1, matrix), (*input1.shape[:-1], outputs, second))
    result = net.squeeze(net.matmul(rows, net.unsqueeze(input2, -1)), -1)
    return result if bias is None else net.elementwise("SUM", result, bias)


def times_along(net: Network, input: Tensor, matrix: torch.Tensor | Tensor, axis: int) -> Tensor:
    """Every vector along one dimension, of ``size`` elements, times a matrix [size, wanted], constant or computed."""
    if isinstance(matrix, torch.Tensor):
        matrix = net.constant(matrix.to(input.dtype))
    weights = net.cast(matrix, input.dtype)
    if axis % input.rank == input.rank - 2:
        return net.matmul(weights, input, transpose_first=True)
    last = input.rank - 1
    return net.transpose(net.matmul(net.transpose(input, axis, last), weights), axis, last)
