"""Elementwise arithmetic, comparisons and logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.trt.arithmetic import Operand, value_of
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


@converter(aten._to_copy.default)
def to_copy(net: Network, input: Tensor, dtype: torch.dtype | None, **_: Any) -> Tensor:
    """_to_copy(Tensor self, *, ScalarType? dtype=None, ...) -> Tensor"""
    return input if dtype is None else net.cast(input, dtype)


def _scaled(net: Network, operand: Operand, factor: float) -> Operand:
    return operand if factor == 1 else net.binary("PROD", operand, factor)


@converter(aten.add.Tensor, aten.add.Scalar)
def add(net: Network, input: Tensor, other: Operand, alpha: float) -> Tensor:
    """add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return net.binary("SUM", input, _scaled(net, other, alpha))


@converter(aten.sub.Tensor, aten.sub.Scalar)
def sub(net: Network, input: Tensor, other: Operand, alpha: float) -> Tensor:
    """sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return net.binary("SUB", input, _scaled(net, other, alpha))


@converter(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(net: Network, input: Tensor, other: Operand, alpha: float) -> Tensor:
    """rsub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return net.binary("SUB", other, _scaled(net, input, alpha))


@converter(aten.mul.Tensor, aten.mul.Scalar)
def mul(net: Network, input: Tensor, other: Operand) -> Tensor:
    """mul.Tensor(Tensor self, Tensor other) -> Tensor"""
    return net.binary("PROD", input, other)


@converter(aten.div.Tensor, aten.div.Scalar)
def div(net: Network, input: Tensor, other: Operand) -> Tensor:
    """div.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = net.promoted_dtype(input, other)
    if not dtype.is_floating_point:
        dtype = torch.float32
    return net.elementwise("DIV", net.tensor(input, dtype), net.tensor(other, dtype))


@converter(aten.maximum.default)
def maximum(net: Network, input: Tensor, other: Operand) -> Tensor:
    """maximum(Tensor self, Tensor other) -> Tensor"""
    return net.binary("MAX", input, other)


@converter(aten.minimum.default)
def minimum(net: Network, input: Tensor, other: Operand) -> Tensor:
    """minimum(Tensor self, Tensor other) -> Tensor"""
    return net.binary("MIN", input, other)


@converter(aten.pow.Tensor_Scalar)
def pow_scalar(net: Network, input: Tensor, exponent: float) -> Tensor:
    """pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor"""
    if exponent == 2:
        return net.elementwise("PROD", input, input)
    if exponent == 1:
        return input
    if input.dtype.is_floating_point:
        if exponent == 0.5:
            return net.unary("SQRT", input)
        if exponent == -0.5:
            return net.unary("RECIP", net.unary("SQRT", input))
        if exponent == -1:
            return net.unary("RECIP", input)
        if exponent == 3:
            return net.elementwise("PROD", net.elementwise("PROD", input, input), input)
    return net.binary("POW", input, exponent)


@converter(aten.pow.Tensor_Tensor)
def pow_tensor(net: Network, input: Tensor, exponent: Tensor) -> Tensor:
    """pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor"""
    return net.binary("POW", input, exponent)


@converter(aten.pow.Scalar)
def pow_base(net: Network, input: Operand, exponent: Tensor) -> Tensor:
    """pow.Scalar(Scalar self, Tensor exponent) -> Tensor"""
    return net.binary("POW", input, exponent)


# -- comparisons and logic ---------------------------------------------------------------------------------------------


def _compare(net: Network, operation: str, first: Operand, second: Operand, *, negated: bool = False) -> Tensor:
    result = net.binary(operation, first, second)
    return net.unary("NOT", result) if negated else result


def _comparison(operation: str, *, negated: bool) -> Callable[..., Tensor]:
    def compare(net: Network, input: Tensor, other: Operand) -> Tensor:
        return _compare(net, operation, input, other, negated=negated)

    return compare


for _name, _operation, _negated in (
    ("eq", "EQUAL", False),
    ("ne", "EQUAL", True),
    ("gt", "GREATER", False),
    ("lt", "LESS", False),
    ("ge", "LESS", True),
    ("le", "GREATER", True),
):
    _packet = getattr(aten, _name)
    converter(_packet.Tensor, _packet.Scalar)(_comparison(_operation, negated=_negated))


def _logic(operation: str) -> Callable[..., Tensor]:
    def logic(net: Network, input: Tensor, other: Operand) -> Tensor:
        return net.elementwise(operation, net.tensor(input, torch.bool), net.tensor(other, torch.bool))

    return logic


for _name, _operation in (("logical_and", "AND"), ("logical_or", "OR"), ("logical_xor", "XOR")):
    converter(getattr(aten, _name).default)(_logic(_operation))


@converter(aten.logical_not.default)
def logical_not(net: Network, input: Tensor) -> Tensor:
    """logical_not(Tensor self) -> Tensor"""
    return net.unary("NOT", input)


def _not_bool(input: Any, **_: Any) -> str | None:
    return None if input.dtype == torch.bool else f"TensorRT has no bitwise arithmetic on {input.dtype}"


for _name, _operation in (("bitwise_and", "AND"), ("bitwise_or", "OR"), ("bitwise_xor", "XOR")):
    converter(getattr(aten, _name).Tensor, getattr(aten, _name).Scalar, unsupported=_not_bool)(_logic(_operation))
converter(aten.bitwise_not.default, unsupported=_not_bool)(logical_not)


@converter(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(net: Network, condition: Tensor, input: Operand, other: Operand) -> Tensor:
    """where.self(Tensor condition, Tensor self, Tensor other) -> Tensor"""
    return net.select(net.cast(condition, torch.bool), *net.promote(input, other))


@converter(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(net: Network, input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor"""
    number = value_of(value)
    filling = net.tensor(value if number is None else number, input.dtype)
    return net.select(net.cast(mask, torch.bool), filling, input)


# -- functions of one tensor -------------------------------------------------------------------------------------------


def _unary(operation: str) -> Callable[..., Tensor]:
    def unary(net: Network, input: Tensor) -> Tensor:
        return net.unary(operation, input)

    return unary


for _name, _operation in (
    *(
        ("exp", "EXP"),
        ("log", "LOG"),
        ("sqrt", "SQRT"),
        ("reciprocal", "RECIP"),
        ("abs", "ABS"),
        ("neg", "NEG"),
    ),
    *(("sin", "SIN"), ("cos", "COS"), ("tan", "TAN"), ("sinh", "SINH"), ("cosh", "COSH")),
    *(("asin", "ASIN"), ("acos", "ACOS"), ("atan", "ATAN"), ("asinh", "ASINH"), ("acosh", "ACOSH")),
    *(("atanh", "ATANH"), ("erf", "ERF"), ("sign", "SIGN"), ("sgn", "SIGN")),
):
    converter(getattr(aten, _name).default)(_unary(_operation))


def _rounding(operation: str) -> Callable[..., Tensor]:
    def rounding(net: Network, input: Tensor) -> Tensor:
        return net.unary(operation, input) if input.dtype.is_floating_point else input

    return rounding


for _name, _operation in (("floor", "FLOOR"), ("ceil", "CEIL"), ("round", "ROUND")):
    converter(getattr(aten, _name).default)(_rounding(_operation))


@converter(aten.rsqrt.default)
def rsqrt(net: Network, input: Tensor) -> Tensor:
    """rsqrt(Tensor self) -> Tensor"""
    return net.unary("RECIP", net.unary("SQRT", input))


@converter(aten.square.default)
def square(net: Network, input: Tensor) -> Tensor:
    """square(Tensor self) -> Tensor"""
    return net.elementwise("PROD", input, input)
