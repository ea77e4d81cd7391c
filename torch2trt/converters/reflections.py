"""Factors of matrices of a few rows or columns by Householder's reflections, some fifteen layers each.

With the signs of LAPACK, which torch's are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from torch2trt.converters.linalg import column_of, factors_unsupported, identity, row_of
from torch2trt.converters.registry import converter
from torch2trt.sizes import TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

Reflection = tuple[Tensor, Tensor]
"""The normal [..., n, 1] and the scale [..., 1, 1] of ``1 - scale * normal @ normal.mT``."""


# -- factors -----------------------------------------------------------------------------------------------------------


def _qr_unsupported(A: TensorSpec, mode: str, used: Collection[int]) -> str | None:
    return "a factor that has no elements" if mode == "r" and 0 in used else factors_unsupported(A.shape)


@converter(aten.linalg_qr.default, unsupported=_qr_unsupported)
def linalg_qr(net: Network, A: Tensor, mode: str) -> tuple[Tensor | None, Tensor]:
    """linalg_qr(Tensor A, str mode='reduced') -> (Tensor Q, Tensor R)

    Of columns that depend on each other any directions that are left are right, and these may be others than torch's.
    """
    rows, columns = (int(size) for size in A.shape[-2:])
    rest, reflections = _triangular(net, A)
    kept = rows if mode == "complete" else min(rows, columns)
    zero = net.tensor(0.0, torch.float32)
    upper = net.select(net.triangle(kept, columns, 0, upper=True), net.narrow(rest, -2, 0, kept), zero)
    if mode == "r":
        return None, upper
    return _product(net, reflections, identity(net, rows, kept, A.rank)), upper


def _geqrf_unsupported(input: TensorSpec) -> str | None:
    return factors_unsupported(input.shape)


@converter(aten.geqrf.default, unsupported=_geqrf_unsupported)
def geqrf(net: Network, input: Tensor) -> tuple[Tensor, Tensor]:
    """geqrf(Tensor self) -> (Tensor a, Tensor tau)"""
    rows, columns = (int(size) for size in input.shape[-2:])
    rest, reflections = _triangular(net, input)
    normals = [normal for normal, _ in reflections]
    if columns > len(normals):
        normals.append(net.narrow(rest, -1, len(normals), columns - len(normals)))
    factor = net.select(net.triangle(rows, columns, 0, upper=True), rest, net.concat(normals, -1))
    return factor, net.squeeze(net.concat([scale for _, scale in reflections], -1), -2)


def _triangular(net: Network, matrix: Tensor) -> tuple[Tensor, list[Reflection]]:
    """What reflections leave of a matrix, nothing below its diagonal but rounding, in float32; and the reflections."""
    rest = net.cast(matrix, torch.float32)
    reflections: list[Reflection] = []
    for index in range(min(int(size) for size in matrix.shape[-2:])):
        reflections.append(_reflection(net, column_of(net, rest, index), index))
        rest = _reflected(net, rest, *reflections[-1])
    return rest, reflections


def _reflection(net: Network, column: Tensor, index: int) -> Reflection:
    """The reflection that leaves nothing of a column [..., n, 1] below an element.

    Returns:
        Its normal [..., n, 1], 1 there and 0 above it, and its scale [..., 1, 1], 0 where there was nothing below.
    """
    zero, one = (net.tensor(value, torch.float32) for value in (0.0, 1.0))
    places = net.constant(torch.arange(int(column.shape[-2])).reshape(-1, 1))
    below = net.select(net.binary("GREATER", places, index), column, zero)
    largest = net.reduce("MAX", net.unary("ABS", below), [-2], True)
    none = net.binary("EQUAL", largest, 0.0)
    # Squares of numbers that are neither large nor small.
    head = row_of(net, column, index)
    unit = net.elementwise("MAX", largest, net.unary("ABS", head))
    unit = net.select(none, one, unit)
    head, below = (net.elementwise("DIV", each, unit) for each in (head, below))
    squares = net.reduce("SUM", net.elementwise("PROD", below, below), [-2], True)
    length = net.unary("SQRT", net.elementwise("SUM", squares, net.elementwise("PROD", head, head)))
    end = net.select(net.binary("LESS", head, 0.0), length, net.unary("NEG", length))
    difference = net.select(none, one, net.elementwise("SUB", head, end))
    scale = net.select(none, zero, net.elementwise("DIV", net.unary("NEG", difference), end))
    normal = net.elementwise("DIV", below, difference)
    return net.select(net.binary("EQUAL", places, index), one, normal), scale


def _reflected(net: Network, matrix: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    parts = net.reduce("SUM", net.elementwise("PROD", normal, matrix), [-2], True)
    moved = net.elementwise("PROD", net.elementwise("PROD", normal, scale), parts)
    return net.elementwise("SUB", matrix, moved)


# -- products ----------------------------------------------------------------------------------------------------------


def _product(net: Network, reflections: Sequence[Reflection], matrix: Tensor) -> Tensor:
    """The product of reflections and a matrix, of which the last is reflected first."""
    for reflection in reversed(reflections):
        matrix = _reflected(net, matrix, *reflection)
    return matrix


def _given(net: Network, normals: Tensor, scales: Tensor) -> list[Reflection]:
    """The reflections of which a matrix [..., rows, *] holds the normals below its diagonal, with scales [..., k]."""
    rows, count = (int(size) for size in (normals.shape[-2], scales.shape[-1]))
    places = net.constant(torch.arange(rows).reshape(-1, 1))
    zero, one = (net.tensor(value, torch.float32) for value in (0.0, 1.0))
    wide, rest = (net.cast(each, torch.float32) for each in (normals, net.unsqueeze(scales, -2)))
    found: list[Reflection] = []
    for index in range(count):
        normal = net.select(net.binary("GREATER", places, index), column_of(net, wide, index), zero)
        normal = net.select(net.binary("EQUAL", places, index), one, normal)
        found.append((normal, column_of(net, rest, index)))
    return found


def _householder_unsupported(input: TensorSpec, tau: TensorSpec) -> str | None:
    return factors_unsupported((*input.shape[:-1], tau.shape[-1])) or factors_unsupported(input.shape[-1:] * 2)


@converter(aten.linalg_householder_product.default, unsupported=_householder_unsupported)
def linalg_householder_product(net: Network, input: Tensor, tau: Tensor) -> Tensor:
    """linalg_householder_product(Tensor input, Tensor tau) -> Tensor"""
    rows, columns = (int(size) for size in input.shape[-2:])
    product = _product(net, _given(net, input, tau), identity(net, rows, columns, input.rank))
    return net.expand(product, input.shape)


def _ormqr_unsupported(input: TensorSpec, input2: TensorSpec, input3: TensorSpec, **_: bool) -> str | None:
    if 0 in input3.shape:
        return "a product that has no elements"
    return factors_unsupported((*input.shape[:-1], input2.shape[-1]))


@converter(aten.ormqr.default, unsupported=_ormqr_unsupported)
def ormqr(net: Network, input: Tensor, input2: Tensor, input3: Tensor, left: bool, transpose: bool) -> Tensor:
    """ormqr(Tensor self, Tensor input2, Tensor input3, bool left=True, bool transpose=False) -> Tensor"""
    reflections = _given(net, input, input2)
    # Each reflection is its own transpose, so that the product's has them in the opposite order.
    if transpose == left:
        reflections.reverse()
    matrix = net.cast(input3, torch.float32)
    if left:
        return _product(net, reflections, matrix)
    return net.transpose(_product(net, reflections, net.transpose(matrix, -2, -1)), -2, -1)
