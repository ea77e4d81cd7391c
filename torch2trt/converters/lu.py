"""Triangular factors of matrices of a few rows or columns, with LAPACK's partial pivoting, some twenty layers a column.

Every row that is swapped is swapped here too, so that of equally large pivots the one is taken that torch takes.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from torch2trt.converters.linalg import (
    column_of,
    factors_unsupported,
    first_zero,
    identity,
    row_of,
    solve_triangular,
)
from torch2trt.converters.registry import converter
from torch2trt.sizes import TensorSpec
from torch2trt.trt.dims import broadcast
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _factor_unsupported(A: TensorSpec, pivot: bool, **_: Any) -> str | None:
    return factors_unsupported(A.shape) if pivot else "factors without pivoting"


@dataclass(frozen=True)
class _Factors:
    """What elimination makes of a matrix.

    Attributes:
        both: the factors in one matrix [..., m, n].
        permuted: the identity [..., m, m] with its rows swapped as the matrix's were, where it was asked for.
        swaps: by column the row [..., 1, 1] that it was swapped with, counted from 1.
        pivots: by column [..., 1, 1].
    """

    both: Tensor
    permuted: Tensor | None
    swaps: list[Tensor]
    pivots: list[Tensor]


def _factors(net: Network, matrix: Tensor, *, permuted: bool = False) -> _Factors:
    rows, columns = (int(size) for size in matrix.shape[-2:])
    work = net.cast(matrix, torch.float32)
    if permuted:
        own = net.expand(identity(net, rows, rows, matrix.rank), (*matrix.shape[:-1], rows))
        work = net.concat([work, own], -1)
    zero, one = (net.tensor(value, torch.float32) for value in (0.0, 1.0))
    places = _places(net, rows)
    beyond = net.tensor(float(rows), torch.float32)
    beside = torch.arange(columns + rows * permuted)
    swaps: list[Tensor] = []
    pivots: list[Tensor] = []
    for index in range(min(rows, columns)):
        # The first of the longest among the rows that are left; where there is none, for NaN, the next one.
        length = net.unary("ABS", column_of(net, work, index))
        left = net.constant(torch.arange(rows).reshape(-1, 1) >= index)
        length = net.select(left, length, net.tensor(-1.0, torch.float32))
        longest = net.elementwise("EQUAL", length, net.reduce("MAX", length, [-2], True))
        row = net.reduce("MIN", net.select(longest, places, beyond), [-2], True)
        row = net.select(net.elementwise("EQUAL", row, beyond), net.tensor(float(index), torch.float32), row)
        work, taken = _swapped(net, work, places, index, row)
        pivot = column_of(net, taken, index)
        divisor = net.select(net.elementwise("EQUAL", pivot, zero), one, pivot)
        factor = net.elementwise("DIV", column_of(net, work, index), divisor)
        is_below = torch.arange(rows).reshape(-1, 1) > index
        # The rows below lose as much of this one; what belongs to the identity is only swapped.
        inner = net.constant((beside > index) & (beside < columns))
        share = net.elementwise(
            "PROD", net.select(net.constant(is_below), factor, zero), net.select(inner, taken, zero)
        )
        work = net.elementwise("SUB", work, share)
        work = net.select(net.constant(is_below & (beside == index)), factor, work)
        swaps.append(net.binary("SUM", row, 1.0))
        pivots.append(pivot)
    both = net.narrow(work, -1, 0, columns)
    return _Factors(both, net.narrow(work, -1, columns, rows) if permuted else None, swaps, pivots)


def _places(net: Network, rows: int) -> Tensor:
    return net.constant(torch.arange(rows, dtype=torch.float32).reshape(-1, 1))


def _swapped(net: Network, matrix: Tensor, places: Tensor, index: int, row: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with two rows swapped, of which one is known, and what is in that one then."""
    zero = net.tensor(0.0, torch.float32)
    is_row = net.elementwise("EQUAL", places, row)
    taken = net.reduce("SUM", net.select(is_row, matrix, zero), [-2], True)
    others = net.select(is_row, row_of(net, matrix, index), matrix)
    return net.select(net.binary("EQUAL", places, float(index)), taken, others), taken


def _lower(net: Network, both: Tensor) -> Tensor:
    """Ones on the diagonal and what is below it, [..., m, min(m, n)]."""
    rows, columns = (int(size) for size in both.shape[-2:])
    kept = min(rows, columns)
    below = net.constant(torch.ones(rows, kept, dtype=torch.bool).tril(-1))
    return net.select(below, net.narrow(both, -1, 0, kept), identity(net, rows, kept, both.rank))


def _upper(net: Network, both: Tensor) -> Tensor:
    """The diagonal and what is above it, [..., min(m, n), n]."""
    rows, columns = (int(size) for size in both.shape[-2:])
    kept = min(rows, columns)
    above = net.constant(torch.ones(kept, columns, dtype=torch.bool).triu())
    return net.select(above, net.narrow(both, -2, 0, kept), net.tensor(0.0, torch.float32))


def _joined(net: Network, numbers: list[Tensor]) -> Tensor:
    """Numbers [..., 1, 1] as INT32 [..., k]."""
    return net.squeeze(net.cast(net.concat(numbers, -1), torch.int32), -2)


# -- factors -----------------------------------------------------------------------------------------------------------


@converter(aten.linalg_lu.default, unsupported=_factor_unsupported)
def linalg_lu(net: Network, A: Tensor, pivot: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """linalg_lu(Tensor A, *, bool pivot=True) -> (Tensor P, Tensor L, Tensor U)"""
    found = _factors(net, A, permuted=0 in net.used)
    turned = None if found.permuted is None else net.transpose(found.permuted, -2, -1)
    return turned, _lower(net, found.both), _upper(net, found.both)


@converter(aten.linalg_lu_factor.default, unsupported=_factor_unsupported)
def linalg_lu_factor(net: Network, A: Tensor, pivot: bool) -> tuple[Tensor, Tensor]:
    """linalg_lu_factor(Tensor A, *, bool pivot=True) -> (Tensor LU, Tensor pivots)"""
    found = _factors(net, A)
    return found.both, _joined(net, found.swaps)


@converter(aten.linalg_lu_factor_ex.default, unsupported=_factor_unsupported)
def linalg_lu_factor_ex(net: Network, A: Tensor, **_: bool) -> tuple[Tensor, Tensor, Tensor]:
    """linalg_lu_factor_ex(Tensor A, *, bool pivot=True, bool check_errors=False) -> (Tensor LU, ..., Tensor info)"""
    found = _factors(net, A)
    return found.both, _joined(net, found.swaps), first_zero(net, found.pivots)


def _unpack_unsupported(
    LU_data: TensorSpec, unpack_data: bool, unpack_pivots: bool, used: AbstractSet[int], **_: Any
) -> str | None:
    if (0 in used and not unpack_pivots) or (used & {1, 2} and not unpack_data):
        return "a result that was not asked for, which is empty"
    return factors_unsupported(LU_data.shape)


@converter(aten.lu_unpack.default, unsupported=_unpack_unsupported)
def lu_unpack(net: Network, LU_data: Tensor, LU_pivots: Tensor, **_: bool) -> tuple[Tensor | None, ...]:
    """lu_unpack(Tensor LU_data, Tensor LU_pivots, ...) -> (Tensor P, Tensor L, Tensor U)"""
    turned = None
    if 0 in net.used:
        rows = int(LU_data.shape[-2])
        own = net.expand(identity(net, rows, rows, LU_data.rank), (*LU_data.shape[:-1], rows))
        turned = net.transpose(_with_rows_swapped(net, own, LU_pivots), -2, -1)
    lower, upper = (_lower(net, LU_data), _upper(net, LU_data)) if net.used & {1, 2} else (None, None)
    return turned, lower, upper


def _with_rows_swapped(net: Network, matrix: Tensor, swaps: Tensor, *, back: bool = False) -> Tensor:
    """The rows of [..., m, n] swapped as INT32 [..., k] says, in that order or undone."""
    places = _places(net, int(matrix.shape[-2]))
    rows = net.unsqueeze(net.binary("SUB", net.cast(swaps, torch.float32), 1.0), -2)
    order = range(int(swaps.shape[-1]))
    for index in reversed(order) if back else order:
        matrix, _ = _swapped(net, matrix, places, index, column_of(net, rows, index))
    return matrix


# -- systems -----------------------------------------------------------------------------------------------------------


def _solve_unsupported(LU: TensorSpec, B: TensorSpec, **_: Any) -> str | None:
    return "a solution that has no elements" if 0 in B.shape else factors_unsupported(LU.shape)


@converter(aten.linalg_lu_solve.default, unsupported=_solve_unsupported)
def linalg_lu_solve(net: Network, LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
    """linalg_lu_solve(Tensor LU, Tensor pivots, Tensor B, *, bool left=True, bool adjoint=False) -> Tensor"""
    right = net.cast(B, torch.float32)
    if not left:
        # x A = b is A.T x.T = b.T.
        right, adjoint = net.transpose(right, -2, -1), not adjoint
    right = net.expand(right, (*broadcast(LU.shape[:-2], right.shape[:-2]), *right.shape[-2:]))
    if adjoint:
        turned = net.transpose(LU, -2, -1)
        right = solve_triangular(net, turned, right, upper=False, unit=False)
        right = solve_triangular(net, turned, right, upper=True, unit=True)
        right = _with_rows_swapped(net, right, pivots, back=True)
    else:
        right = _with_rows_swapped(net, right, pivots)
        right = solve_triangular(net, LU, right, upper=False, unit=True)
        right = solve_triangular(net, LU, right, upper=True, unit=False)
    return right if left else net.transpose(right, -2, -1)
