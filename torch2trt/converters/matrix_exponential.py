"""Exponentials of matrices: a polynomial of the matrix divided by a power of two, squared as often.

The polynomial is Taylor's of degree 12, exact in float32 for a norm of 1.46 (Bader, Blanes and Casas, Computing the
matrix exponential with an optimized Taylor polynomial approximation, 2019), in four blocks of powers of the third. How
often a matrix is squared depends on its values, so that is a loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import DimRange, TensorSpec, largest, volume
from torch2trt.trt.loops import Loop
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_MOST = 64
_MOST_PRODUCTS = 2**26
_NORM = 1.46
_SQUARINGS = 126  # the smallest power of two that float32 holds with all digits


def _unsupported(input: TensorSpec, ranges: Mapping[str, DimRange]) -> str | None:
    size = input.shape[-1]
    if not isinstance(size, int):
        return "the exponential of a matrix of a dynamic number of rows"
    if size > _MOST:
        return f"the exponential of a matrix of {size} rows: {_MOST} at most"
    products = largest(volume((*input.shape, size)), ranges)
    return f"products of {products} numbers, more than {_MOST_PRODUCTS}" if products > _MOST_PRODUCTS else None


@converter(aten.linalg_matrix_exp.default, unsupported=_unsupported)
def linalg_matrix_exp(net: Network, input: Tensor) -> Tensor:
    """linalg_matrix_exp(Tensor self) -> Tensor"""
    size = input.shape[-1]
    assert isinstance(size, int)
    if size == 1 or 0 in input.shape:
        return net.unary("EXP", input)
    matrix = net.reshape(net.cast(input, torch.float32), (volume(input.shape[:-2]), size, size))
    norm = net.reduce("SUM", net.unary("ABS", matrix), [1], True)
    norm = net.reduce("MAX", norm, [2], True)
    powers = 2.0 ** torch.arange(_SQUARINGS).reshape(1, 1, -1)
    exceeded = net.elementwise("GREATER", norm, net.constant(_NORM * powers))
    scales = net.select(exceeded, net.constant(0.5 / powers), net.tensor(1.0, torch.float32))
    scale = net.reduce("MIN", scales, [2], True)
    count = net.reduce("SUM", net.cast(exceeded, torch.int32), [2], True)
    result = _squared(net, _polynomial(net, net.elementwise("PROD", matrix, scale)), count)
    return net.cast(net.reshape(result, input.shape), input.dtype)


def _squared(net: Network, matrices: Tensor, count: Tensor) -> Tensor:
    """Matrices [batch, n, n] squared so often, INT32 [batch, 1, 1]."""
    loop = Loop(net)
    result, left = loop.carry(matrices), loop.carry(count)
    going_on = loop.carry(_any_left(net, count))
    loop.go_on(going_on)
    squares = _product(net, result, result)
    following = net.binary("SUB", left, 1)
    loop.follow(going_on, _any_left(net, following))
    loop.follow(left, following)
    return loop.follow(result, net.select(net.binary("GREATER", left, 0), squares, result))


def _any_left(net: Network, count: Tensor) -> Tensor:
    return net.binary("GREATER", net.reduce("MAX", count, [0, 1, 2], False), 0)


def _polynomial(net: Network, matrix: Tensor) -> Tensor:
    """The sum of ``matrix**k / k!`` for k up to 12."""
    size = matrix.shape[-1]
    assert isinstance(size, int)
    square = _product(net, matrix, matrix)
    cube = _product(net, square, matrix)
    powers = [net.constant(torch.eye(size).reshape(1, size, size)), matrix, square, cube]

    def block(first: int, count: int) -> Tensor:
        terms = [
            net.binary("PROD", power, 1 / math.factorial(first + number)) for number, power in enumerate(powers[:count])
        ]
        result = terms[0]
        for term in terms[1:]:
            result = net.elementwise("SUM", result, term)
        return result

    result = block(9, 4)
    for first in (6, 3, 0):
        result = net.elementwise("SUM", _product(net, result, cube), block(first, 3))
    return result


def _product(net: Network, first: Tensor, second: Tensor) -> Tensor:
    """The product of matrices [batch, n, n], element by element: TF32, squared so often, would leave no digits."""
    parts = net.elementwise("PROD", net.unsqueeze(first, 3), net.unsqueeze(second, 1))
    return net.reduce("SUM", parts, [2], False)
