"""Linear layers and matrix products."""

from __future__ import annotations

import torch

from torch2trt.converters.activations import activate
from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.graph.ops import LINEAR_BLOCK
from torch2trt.sizes import volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


@converter(aten.linear.default, unsupported=only_floats)
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


@converter(aten.matmul.default, unsupported=only_floats)
def matmul(net: Network, input: Tensor, other: Tensor) -> Tensor:
    """matmul(Tensor self, Tensor other) -> Tensor"""
    return net.matmul(input, other)


@converter(aten.mm.default, aten.bmm.default, unsupported=only_floats)
def mm(net: Network, input: Tensor, mat2: Tensor) -> Tensor:
    """mm(Tensor self, Tensor mat2) -> Tensor"""
    return net.matmul(input, mat2)


@converter(aten.dot.default, unsupported=only_floats)
def dot(net: Network, input: Tensor, tensor: Tensor) -> Tensor:
    """dot(Tensor self, Tensor tensor) -> Tensor"""
    return net.matmul(input, tensor)


@converter(aten.mv.default, unsupported=only_floats)
def mv(net: Network, input: Tensor, vec: Tensor) -> Tensor:
    """mv(Tensor self, Tensor vec) -> Tensor"""
    return net.matmul(input, vec)


def _plus(net: Network, input: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    """``beta * input + alpha * product``; a beta of 0 ignores the input, even where it is not a number."""
    if alpha != 1:
        product = net.binary("PROD", product, alpha)
    if beta == 0:
        return product
    return net.elementwise("SUM", net.binary("PROD", input, beta) if beta != 1 else input, product)


@converter(aten.addmm.default, unsupported=only_floats)
def addmm(net: Network, input: Tensor, mat1: Tensor, mat2: Tensor, beta: float, alpha: float) -> Tensor:
    """addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return _plus(net, input, net.matmul(mat1, mat2), beta, alpha)


@converter(aten.baddbmm.default, unsupported=only_floats)
def baddbmm(net: Network, input: Tensor, batch1: Tensor, batch2: Tensor, beta: float, alpha: float) -> Tensor:
    """baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return _plus(net, input, net.matmul(batch1, batch2), beta, alpha)


def times_along(net: Network, input: Tensor, matrix: torch.Tensor, axis: int) -> Tensor:
    """Every vector along one dimension, of ``size`` elements, times a constant matrix [size, wanted]."""
    weights = net.constant(matrix.to(input.dtype))
    if axis % input.rank == input.rank - 2:
        return net.matmul(weights, input, transpose_first=True)
    last = input.rank - 1
    return net.transpose(net.matmul(net.transpose(input, axis, last), weights), axis, last)
