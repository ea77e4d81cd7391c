"""Linear systems of a few unknowns, unrolled: TensorRT has no solver.

Gauss and Jordan's elimination with partial pivoting and Cholesky's decomposition take some fifteen layers a column.
A singular matrix, for which torch raises an error, yields infinities or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import reduce
from typing import Any

import torch

from torch2trt.converters.ranking import places_along
from torch2trt.converters.registry import converter, refuse
from torch2trt.sizes import Shape, TensorSpec
from torch2trt.trt.dims import broadcast
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

MOST_UNROLLED = 16
"""The equations, or the rows or columns of a matrix, that are taken one by one at most."""

refuse(
    *("aten._linalg_svd.default", "aten._linalg_eigh.default", "aten._linalg_eigvals.default"),
    *("aten.linalg_eig.default", "aten.linalg_pinv.atol_rtol_tensor"),
    reason="TensorRT has no singular vectors or eigenvectors, and those found step by step have not torch's signs",
)
refuse(
    *("aten.linalg_ldl_factor.default", "aten.linalg_ldl_factor_ex.default", "aten.linalg_ldl_solve.default"),
    reason="blocks of two rows or one, as their values say",
)
refuse(
    *("aten.linalg_polar.default", "aten.linalg_matrix_sqrth.default"),
    reason="how many steps its iteration takes depends on the values",
)


def _size_unsupported(matrix: TensorSpec) -> str | None:
    size = matrix.shape[-1]
    if not isinstance(size, int):
        return "a system of a dynamic number of equations"
    if size == 0:
        return "a system of no equations"
    return (
        f"a system of {size} equations: TensorRT has no solver, and {MOST_UNROLLED} at most are unrolled"
        if size > MOST_UNROLLED
        else None
    )


def factors_unsupported(shape: Shape) -> str | None:
    """Why a matrix of a shape cannot be taken apart by columns."""
    rows, columns = shape[-2:]
    if not isinstance(rows, int) or not isinstance(columns, int):
        return "the factors of a matrix of a dynamic number of rows or columns"
    if 0 in shape:
        return "a factor that has no elements"
    if min(rows, columns) > MOST_UNROLLED:
        extent = f"{rows} rows and {columns} columns"
        return f"the factors of a matrix of {extent}: {MOST_UNROLLED} at most of either are unrolled"
    return None


def _unsupported(matrix: str, results: int = 1) -> Callable[..., str | None]:
    """The reasons of an operator with the matrix in one of its arguments, of whose results only the first are known."""

    def unsupported(*, used: Collection[int] = (), **arguments: Any) -> str | None:
        if any(index >= results for index in used):
            return "the factors or pivots of a decomposition"
        return _size_unsupported(arguments[matrix])

    return unsupported


def column_of(net: Network, matrix: Tensor, index: int) -> Tensor:
    """One column, [..., n, 1]."""
    return net.narrow(matrix, -1, index, 1)


def row_of(net: Network, matrix: Tensor, index: int) -> Tensor:
    """One row, [..., 1, n]."""
    return net.narrow(matrix, -2, index, 1)


def identity(net: Network, rows: int, columns: int, rank: int) -> Tensor:
    """Ones on the diagonal of a float32 matrix, after leading dimensions of size 1 up to a rank."""
    return net.constant(torch.eye(rows, columns).reshape((*(1,) * (rank - 2), rows, columns)))


def _identity(net: Network, matrix: Tensor) -> Tensor:
    size = matrix.shape[-1]
    assert isinstance(size, int)
    return identity(net, size, size, matrix.rank)


def _eliminate(net: Network, matrix: Tensor, right: Tensor | None) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """By column the pivot and its sign in the determinant, [..., 1, 1], and the solution, [..., n, columns]."""
    size = matrix.shape[-1]
    assert isinstance(size, int)
    zero, one = (net.tensor(value, torch.float32) for value in (0.0, 1.0))
    if size == 1:
        return [matrix], [], None if right is None else net.elementwise("DIV", right, matrix)
    work = matrix
    if right is not None:
        batch = broadcast(matrix.shape[:-2], right.shape[:-2])
        work = net.concat([net.expand(each, (*batch, *each.shape[-2:])) for each in (matrix, right)], -1)
    places = net.cast(places_along(net, net.narrow(matrix, -1, 0, 1), -2), torch.float32)
    beyond = net.tensor(float(size), torch.float32)
    pivots, signs, chosen = [], [], []
    free: Tensor | None = None
    for index in range(size):
        column = column_of(net, work, index)
        # A row that has been a pivot's is taken no more.
        length = net.unary("ABS", column)
        if free is not None:
            length = net.select(free, length, net.tensor(-1.0, torch.float32))
        longest = net.elementwise("EQUAL", length, net.reduce("MAX", length, [-2], True))
        row = net.reduce("MIN", net.select(longest, places, beyond), [-2], True)
        is_row = net.elementwise("EQUAL", places, row)
        taken = net.reduce("SUM", net.select(is_row, work, zero), [-2], True)
        pivot = column_of(net, taken, index)
        scaled = net.elementwise("DIV", taken, pivot)
        work = net.select(is_row, scaled, net.elementwise("SUB", work, net.elementwise("PROD", column, scaled)))
        # Every row that is left above it is one that it is swapped with.
        above = net.elementwise("LESS", places, row)
        above = above if free is None else net.elementwise("AND", above, free)
        signs.append(net.reduce("PROD", net.select(above, net.tensor(-1.0, torch.float32), one), [-2], True))
        others = net.unary("NOT", is_row)
        free = others if free is None else net.elementwise("AND", free, others)
        pivots.append(pivot)
        chosen.append(is_row)
    if right is None:
        return pivots, signs, None
    # The unknown of a column stands in the row of its pivot.
    values = net.narrow(work, -1, size, right.shape[-1])
    unknowns = [net.reduce("SUM", net.select(is_row, values, zero), [-2], True) for is_row in chosen]
    return pivots, signs, net.concat(unknowns, -2)


def _inverse(matrix: str) -> Callable[..., Tensor]:
    def inverse(net: Network, **arguments: Tensor) -> Tensor:
        return _solve_ex(net, arguments[matrix], _identity(net, arguments[matrix]))[0]

    return inverse


converter(aten.linalg_inv.default, unsupported=_unsupported("A"))(_inverse("A"))
converter(aten.inverse.default, unsupported=_unsupported("input"))(_inverse("input"))


@converter(aten.linalg_inv_ex.default, unsupported=_unsupported("A", results=2))
def linalg_inv_ex(net: Network, A: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """linalg_inv_ex(Tensor A, *, bool check_errors=False) -> (Tensor inverse, Tensor info)"""
    return _solve_ex(net, A, _identity(net, A))


def first_of(net: Network, numbers: list[Tensor], failing: Callable[[Tensor], Tensor]) -> Tensor:
    """Which of numbers [..., 1, 1] is the first that fails, counted from 1; INT32 [...], 0 where none does."""
    count = len(numbers)
    places = net.constant(torch.arange(1, count + 1, dtype=torch.int32))
    none, zero = (net.tensor(number, torch.int32) for number in (count + 1, 0))
    fails = failing(net.concat(numbers, -1))
    first = net.reduce("MIN", net.select(fails, places, none), [-1], True)
    first = net.select(net.elementwise("EQUAL", first, none), zero, first)
    return net.squeeze(net.squeeze(first, -1), -1)


def first_zero(net: Network, pivots: list[Tensor]) -> Tensor:
    """The error code of a factorization: which pivot [..., 1, 1] is the first that is zero."""
    return first_of(net, pivots, lambda joined: net.binary("EQUAL", joined, 0.0))


def _solve_ex(net: Network, matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    pivots, _, solution = _eliminate(net, *(net.cast(each, torch.float32) for each in (matrix, right)))
    assert solution is not None
    return solution, first_zero(net, pivots)


def _linear_solve_ex(net: Network, matrix: Tensor, right: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    vector = right.rank == 1 or (right.rank == matrix.rank - 1 and right.shape == matrix.shape[:-1])
    if vector:
        solution, info = _solve_ex(net, matrix, net.unsqueeze(right, -1))
        return net.squeeze(solution, -1), info
    if left:
        return _solve_ex(net, matrix, right)
    solution, info = _solve_ex(net, net.transpose(matrix, -2, -1), net.transpose(right, -2, -1))
    return net.transpose(solution, -2, -1), info


@converter(aten.linalg_solve.default, unsupported=_unsupported("A"))
def linalg_solve(net: Network, A: Tensor, B: Tensor, left: bool) -> Tensor:
    """linalg_solve(Tensor A, Tensor B, *, bool left=True) -> Tensor"""
    return _linear_solve_ex(net, A, B, left)[0]


@converter(aten.linalg_solve_ex.default, unsupported=_unsupported("A", results=2))
def linalg_solve_ex(net: Network, A: Tensor, B: Tensor, left: bool, **_: Any) -> tuple[Tensor, Tensor]:
    """linalg_solve_ex(Tensor A, Tensor B, *, bool left=True, bool check_errors=False) -> (Tensor result, info)"""
    return _linear_solve_ex(net, A, B, left)


@converter(aten._linalg_solve_ex.default, unsupported=_unsupported("A"))
def _linalg_solve_ex(net: Network, A: Tensor, B: Tensor, left: bool, **_: Any) -> tuple[Tensor, None, None, None]:
    """_linalg_solve_ex(Tensor A, Tensor B, *, bool left=True, bool check_errors=False) -> (Tensor result, ...)"""
    return _linear_solve_ex(net, A, B, left)[0], None, None, None


# -- determinants ------------------------------------------------------------------------------------------------------


def _pivots(net: Network, matrix: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The pivots, [...], signs that go with their product, and whether one is zero and leaves no numbers after."""
    pivots, signs, _ = _eliminate(net, net.cast(matrix, torch.float32), None)
    pivots, signs = ([net.reshape(each, matrix.shape[:-2]) for each in found] for found in (pivots, signs))
    return pivots, signs, _joined(net, "OR", [net.binary("EQUAL", pivot, 0.0) for pivot in pivots])


def _joined(net: Network, operation: str, tensors: list[Tensor]) -> Tensor:
    return reduce(lambda first, second: net.elementwise(operation, first, second), tensors)


@converter(aten._linalg_det.default, unsupported=_unsupported("A"))
def linalg_det(net: Network, A: Tensor) -> tuple[Tensor, None, None]:
    """_linalg_det(Tensor A) -> (Tensor result, Tensor LU, Tensor pivots)"""
    pivots, signs, singular = _pivots(net, A)
    return net.select(singular, net.tensor(0.0, torch.float32), _joined(net, "PROD", [*pivots, *signs])), None, None


@converter(aten._linalg_slogdet.default, unsupported=_unsupported("A", results=2))
def linalg_slogdet(net: Network, A: Tensor) -> tuple[Tensor, Tensor, None, None]:
    """_linalg_slogdet(Tensor A) -> (Tensor sign, Tensor logabsdet, Tensor LU, Tensor pivots)"""
    pivots, signs, singular = _pivots(net, A)
    sign = _joined(net, "PROD", [*(net.unary("SIGN", pivot) for pivot in pivots), *signs])
    logarithm = _joined(net, "SUM", [net.unary("LOG", net.unary("ABS", pivot)) for pivot in pivots])
    nothing = [net.tensor(value, torch.float32) for value in (0.0, -math.inf)]
    sign, logarithm = (net.select(singular, *each) for each in zip(nothing, (sign, logarithm), strict=True))
    return sign, logarithm, None, None


# -- triangles ---------------------------------------------------------------------------------------------------------


def _cholesky(net: Network, matrix: Tensor, upper: bool) -> tuple[Tensor, list[Tensor]]:
    """The factor, and the squares of its diagonal, [..., 1, 1]."""
    size = matrix.shape[-1]
    assert isinstance(size, int)
    # Of an upper one only that half is read.
    rest = net.transpose(matrix, -2, -1) if upper else matrix
    rest = net.cast(rest, torch.float32)
    columns: list[Tensor] = []
    corners: list[Tensor] = []
    for index in range(size):
        # What is left is the lower right corner.
        corners.append(_corner(net, rest))
        column = net.elementwise("DIV", column_of(net, rest, 0), net.unary("SQRT", corners[-1]))
        columns.append(net.pad(column, [*[0] * (matrix.rank - 2), index, 0], [0] * matrix.rank))
        if index < size - 1:
            below = net.narrow(column, -2, 1, size - 1 - index)
            inner = net.narrow(net.narrow(rest, -2, 1, size - 1 - index), -1, 1, size - 1 - index)
            rest = net.elementwise("SUB", inner, net.elementwise("PROD", below, net.transpose(below, -2, -1)))
    lower = net.concat(columns, -1)
    return net.transpose(lower, -2, -1) if upper else lower, corners


def _corner(net: Network, matrix: Tensor) -> Tensor:
    return row_of(net, column_of(net, matrix, 0), 0)


@converter(aten.linalg_cholesky.default, unsupported=_unsupported("input"))
def linalg_cholesky(net: Network, input: Tensor, upper: bool) -> Tensor:
    """linalg_cholesky(Tensor self, *, bool upper=False) -> Tensor"""
    return _cholesky(net, input, upper)[0]


@converter(aten.linalg_cholesky_ex.default, unsupported=_unsupported("input", results=2))
def linalg_cholesky_ex(net: Network, input: Tensor, upper: bool, **_: Any) -> tuple[Tensor, Tensor]:
    """linalg_cholesky_ex(Tensor self, *, bool upper=False, bool check_errors=False) -> (Tensor L, Tensor info)"""
    factor, corners = _cholesky(net, input, upper)
    # The first leading minor that is not positive.
    return factor, first_of(net, corners, lambda joined: net.unary("NOT", net.binary("GREATER", joined, 0.0)))


def solve_triangular(net: Network, matrix: Tensor, right: Tensor, *, upper: bool, unit: bool) -> Tensor:
    """``matrix @ x = right``, of which matrix the other half is not read."""
    size = matrix.shape[-1]
    assert isinstance(size, int)
    rest = right
    rows: dict[int, Tensor] = {}
    for index in reversed(range(size)) if upper else range(size):
        column = column_of(net, matrix, index)
        row = row_of(net, rest, index)
        rows[index] = row if unit else net.elementwise("DIV", row, row_of(net, column, index))
        rest = net.elementwise("SUB", rest, net.elementwise("PROD", column, rows[index]))
    # The right side may have fewer batch dimensions than the matrix.
    batch = broadcast(matrix.shape[:-2], right.shape[:-2])
    return net.concat([net.expand(rows[index], (*batch, 1, right.shape[-1])) for index in range(size)], -2)


@converter(aten.linalg_solve_triangular.default, unsupported=_unsupported("input"))
def linalg_solve_triangular(
    net: Network, input: Tensor, B: Tensor, upper: bool, left: bool, unitriangular: bool
) -> Tensor:
    """linalg_solve_triangular(Tensor self, Tensor B, *, bool upper, bool left=True, bool unitriangular=False)"""
    if left:
        return solve_triangular(net, input, B, upper=upper, unit=unitriangular)
    turned = (net.transpose(each, -2, -1) for each in (input, B))
    return net.transpose(solve_triangular(net, *turned, upper=not upper, unit=unitriangular), -2, -1)


@converter(aten.triangular_solve.default, unsupported=_unsupported("A", results=2))
def triangular_solve(
    net: Network, input: Tensor, A: Tensor, upper: bool, transpose: bool, unitriangular: bool
) -> tuple[Tensor, Tensor]:
    """triangular_solve(Tensor self, Tensor A, bool upper=True, bool transpose=False, bool unitriangular=False)"""
    matrix = net.transpose(A, -2, -1) if transpose else A
    return solve_triangular(net, matrix, input, upper=upper != transpose, unit=unitriangular), A


def _cholesky_solve(net: Network, factor: Tensor, right: Tensor, upper: bool) -> Tensor:
    lower, turned = factor, net.transpose(factor, -2, -1)
    if upper:
        lower, turned = turned, lower
    half_way = solve_triangular(net, lower, right, upper=False, unit=False)
    return solve_triangular(net, turned, half_way, upper=True, unit=False)


@converter(aten.cholesky_solve.default, unsupported=_unsupported("input2"))
def cholesky_solve(net: Network, input: Tensor, input2: Tensor, upper: bool) -> Tensor:
    """cholesky_solve(Tensor self, Tensor input2, bool upper=False) -> Tensor"""
    return _cholesky_solve(net, input2, input, upper)


@converter(aten.cholesky_inverse.default, unsupported=_unsupported("input"))
def cholesky_inverse(net: Network, input: Tensor, upper: bool) -> Tensor:
    """cholesky_inverse(Tensor self, bool upper=False) -> Tensor"""
    return _cholesky_solve(net, input, _identity(net, input), upper)
