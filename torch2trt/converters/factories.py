"""Tensors made from numbers and sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.arithmetic import Operand
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _filled(net: Network, value: Operand) -> Tensor:
    """One number everywhere: a scalar expanded, not a constant of the result's size."""
    return net.expand(net.tensor(value, net.result.dtype), net.result.shape)


def _full_of(value: int) -> Callable[..., Tensor]:
    def full(net: Network, **_: Any) -> Tensor:
        return _filled(net, value)

    return full


# What is empty in torch holds any values.
for _value, _packets in {
    0: (aten.zeros, aten.zeros_like, aten.new_zeros, aten.empty_like, aten.new_empty, aten.zero),
    1: (aten.ones, aten.ones_like, aten.new_ones),
}.items():
    converter(*(packet.default for packet in _packets))(_full_of(_value))
converter(aten.empty.memory_format)(_full_of(0))


@converter(aten.full.default, aten.full_like.default, aten.new_full.default)
def full(net: Network, fill_value: Operand, **_: Any) -> Tensor:
    """full(SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, ...) -> Tensor"""
    return _filled(net, fill_value)


@converter(aten.fill.Scalar, aten.fill.Tensor)
def fill(net: Network, value: Operand, **_: Any) -> Tensor:
    """fill.Scalar(Tensor self, Scalar value) -> Tensor"""
    return _filled(net, value)


@converter(aten.copy.default)
def copy(net: Network, src: Tensor, **_: Any) -> Tensor:
    """copy(Tensor self, Tensor src, bool non_blocking=False) -> Tensor"""
    return _filled(net, src)


@converter(aten.scalar_tensor.default)
def scalar_tensor(net: Network, s: Operand, **_: Any) -> Tensor:
    """scalar_tensor(Scalar s, *, ScalarType? dtype=None, ...) -> Tensor"""
    return _filled(net, s)


# -- ranges ------------------------------------------------------------------------------------------------------------


def _arange_unsupported(results: Sequence[TensorSpec], **_: Any) -> str | None:
    (size,) = results[0].shape
    if isinstance(size, sympy.Expr) and size.has(sympy.Float):
        return f"the dynamic size {size} is made of numbers that are no integers"
    return None


@converter(aten.arange.default, aten.arange.start, aten.arange.start_step, unsupported=_arange_unsupported)
def arange(net: Network, start: Size | float = 0, step: Size | float = 1, **_: Any) -> Tensor:
    """arange.start_step(Scalar start, Scalar end, Scalar step=1, *, ScalarType? dtype=None, ...) -> Tensor"""
    dtype = net.result.dtype
    if not dtype.is_floating_point:
        # Torch counts in integers: a step of 0.5 is none.
        start, step = (int(number) if isinstance(number, float) else number for number in (start, step))
    return net.iota(start, step, net.result.shape[0], dtype)


def _linspace_unsupported(start: Size | float, end: Size | float, **_: Any) -> str | None:
    return None if isinstance(start, int | float) and isinstance(end, int | float) else "ends that are dynamic sizes"


@converter(aten.linspace.default, unsupported=_linspace_unsupported)
def linspace(net: Network, start: float, end: float, steps: int, **_: Any) -> Tensor:
    """linspace(Scalar start, Scalar end, int steps, *, ScalarType? dtype=None, ...) -> Tensor"""
    return net.constant(torch.linspace(start, end, steps, dtype=net.result.dtype))


def _triangle_unsupported(row: Size, col: Size, **_: Any) -> str | None:
    return None if isinstance(row, int) and isinstance(col, int) else "the indices of a triangle of a dynamic size"


def _triangle_indices(function: Callable[..., torch.Tensor]) -> Callable[..., Tensor]:
    def indices(net: Network, row: int, col: int, offset: int, **_: Any) -> Tensor:
        return net.constant(function(row, col, offset, dtype=net.result.dtype))

    return indices


converter(aten.tril_indices.default, unsupported=_triangle_unsupported)(_triangle_indices(torch.tril_indices))
converter(aten.triu_indices.default, unsupported=_triangle_unsupported)(_triangle_indices(torch.triu_indices))


@converter(aten.eye.default, aten.eye.m)
def eye(net: Network, **_: Any) -> Tensor:
    """eye.m(SymInt n, SymInt m, *, ScalarType? dtype=None, ...) -> Tensor"""
    row, column = (net.iota(0, 1, size, torch.int64) for size in net.result.shape)
    return net.cast(net.elementwise("EQUAL", net.unsqueeze(row, 1), net.unsqueeze(column, 0)), net.result.dtype)
