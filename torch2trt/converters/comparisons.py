"""Comparisons, logic, and choices between tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from torch2trt.converters.registry import converter
from torch2trt.trt.arithmetic import Operand
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _comparison(operation: str) -> Callable[..., Tensor]:
    def compare(net: Network, input: Tensor, other: Operand) -> Tensor:
        return net.binary(operation, input, other)

    return compare


def _or_equal(operation: str, opposite: str) -> Callable[..., Tensor]:
    def compare(net: Network, input: Tensor, other: Operand) -> Tensor:
        first, second = net.promote(input, other)
        if first.dtype.is_floating_point:
            # Nothing compares with NaN, so that "not less" would hold where "greater or equal" does not.
            either = (net.elementwise(name, first, second) for name in (operation, "EQUAL"))
            return net.elementwise("OR", *either)
        return net.unary("NOT", net.elementwise(opposite, first, second))

    return compare


def _not_equal(net: Network, input: Tensor, other: Operand) -> Tensor:
    return net.unary("NOT", net.binary("EQUAL", input, other))


for _name, _function in {
    "eq": _comparison("EQUAL"),
    "ne": _not_equal,
    "gt": _comparison("GREATER"),
    "lt": _comparison("LESS"),
    "ge": _or_equal("GREATER", "LESS"),
    "le": _or_equal("LESS", "GREATER"),
}.items():
    converter(getattr(aten, _name).Tensor, getattr(aten, _name).Scalar)(_function)


def logic(operation: str) -> Callable[..., Tensor]:
    """The converter of AND, OR or XOR, of whatever is not zero."""

    def converted(net: Network, input: Tensor, other: Operand) -> Tensor:
        return net.elementwise(operation, net.tensor(input, torch.bool), net.tensor(other, torch.bool))

    return converted


for _name, _operation in (("logical_and", "AND"), ("logical_or", "OR"), ("logical_xor", "XOR")):
    converter(getattr(aten, _name).default)(logic(_operation))


@converter(aten.logical_not.default)
def logical_not(net: Network, input: Tensor) -> Tensor:
    """logical_not(Tensor self) -> Tensor"""
    return net.unary("NOT", input)


@converter(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(net: Network, condition: Tensor, input: Operand, other: Operand) -> Tensor:
    """where.self(Tensor condition, Tensor self, Tensor other) -> Tensor"""
    return net.select(net.cast(condition, torch.bool), *net.promote(input, other))


@converter(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(net: Network, input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor"""
    return net.select(mask, net.tensor(value, input.dtype), input)


@converter(aten.isin.Tensor_Tensor)
def isin(net: Network, elements: Tensor, test_elements: Tensor, invert: bool, **_: bool) -> Tensor:
    """isin.Tensor_Tensor(Tensor elements, Tensor test_elements, *, bool assume_unique=False, bool invert=False)"""
    each = net.binary("EQUAL", net.unsqueeze(elements, -1), net.flatten(test_elements))
    found = net.reduce("MAX", each, [-1], False)
    return net.unary("NOT", found) if invert else found


# -- what is no finite number ------------------------------------------------------------------------------------------


def _never(net: Network, tensor: Tensor) -> Tensor:
    return net.expand(net.tensor(False), tensor.shape)


@converter(aten.isnan.default)
def isnan(net: Network, input: Tensor) -> Tensor:
    """isnan(Tensor self) -> Tensor"""
    return net.unary("ISNAN", input) if input.dtype.is_floating_point else _never(net, input)


@converter(aten.isinf.default)
def isinf(net: Network, input: Tensor) -> Tensor:
    """isinf(Tensor self) -> Tensor"""
    return net.unary("ISINF", input) if input.dtype.is_floating_point else _never(net, input)


@converter(aten.isfinite.default)
def isfinite(net: Network, input: Tensor) -> Tensor:
    """isfinite(Tensor self) -> Tensor"""
    if not input.dtype.is_floating_point:
        return net.unary("NOT", _never(net, input))
    return net.binary("LESS", net.unary("ABS", input), math.inf)


@converter(aten.nan_to_num.default)
def nan_to_num(net: Network, input: Tensor, nan: float | None, posinf: float | None, neginf: float | None) -> Tensor:
    """nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor"""
    if not input.dtype.is_floating_point:
        return input
    limits = torch.finfo(input.dtype)

    def number(chosen: float | None, default: float) -> Tensor:
        return net.tensor(default if chosen is None else chosen, input.dtype)

    result = net.select(isnan(net, input), number(nan, 0.0), input)
    for infinity, chosen, default in ((math.inf, posinf, limits.max), (-math.inf, neginf, limits.min)):
        infinite = net.binary("EQUAL", input, infinity)
        result = net.select(infinite, number(chosen, default), result)
    return result


def _infinite(sign: int) -> Callable[..., Tensor]:
    def infinite(net: Network, input: Tensor) -> Tensor:
        if not input.dtype.is_floating_point:
            return _never(net, input)
        return net.binary("EQUAL", input, sign * math.inf)

    return infinite


def _number_of(operation: str) -> Callable[..., Tensor]:
    def number(net: Network, input: Tensor, other: Tensor) -> Tensor:
        first, second = net.promote(input, other)
        extreme = net.elementwise(operation, first, second)
        if not first.dtype.is_floating_point:
            return extreme
        return net.select(isnan(net, first), second, net.select(isnan(net, second), first, extreme))

    return number


converter(aten.fmax.default)(_number_of("MAX"))
converter(aten.fmin.default)(_number_of("MIN"))
converter(aten.isposinf.default)(_infinite(1))
converter(aten.isneginf.default)(_infinite(-1))
