"""Division with rounding, its remainders, and arithmetic on the bits of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch2trt.converters.comparisons import logic
from torch2trt.converters.elementwise import div, trunc
from torch2trt.converters.registry import converter
from torch2trt.sizes import TensorSpec
from torch2trt.trt.arithmetic import Operand
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _floor_quotient_and_rest(net: Network, input: Operand, other: Operand) -> tuple[Tensor, Tensor]:
    """``floor(a / b)`` and ``a - floor(a / b) * b``, which has the sign of b.

    Of floats the quotient is rounded before the floor is taken: where that made it one too large the rest has the
    wrong sign, which both results make good. Both are then torch's wherever ``floor(a / b) * b`` is exact.
    """
    a, b = net.promote(input, other)
    if a.dtype not in FLOAT_DTYPES:
        quotient = net.elementwise("FLOOR_DIV", a, b)
        return quotient, net.elementwise("SUB", a, net.elementwise("PROD", quotient, b))
    a, b = (net.cast(operand, torch.float32) for operand in (a, b))
    zero, one = (net.tensor(number, a.dtype) for number in (0.0, 1.0))
    quotient = net.unary("FLOOR", net.elementwise("DIV", a, b))
    rest = net.elementwise("SUB", a, net.elementwise("PROD", quotient, b))
    beyond = net.elementwise("LESS", rest, zero)
    if not isinstance(other, int | float):
        above = net.elementwise("GREATER", rest, zero)
        beyond = net.select(net.elementwise("LESS", b, zero), above, beyond)
    elif other < 0:
        beyond = net.elementwise("GREATER", rest, zero)
    quotient = net.select(beyond, net.elementwise("SUB", quotient, one), quotient)
    rest = net.select(beyond, net.elementwise("SUM", rest, b), rest)
    return quotient, rest


@converter(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(net: Network, input: Operand, other: Operand) -> Tensor:
    """floor_divide(Tensor self, Tensor other) -> Tensor"""
    quotient, _ = _floor_quotient_and_rest(net, input, other)
    return net.cast(quotient, net.promoted_dtype(input, other))


def _truncated_quotient(net: Network, input: Operand, other: Operand) -> Tensor:
    dtype = net.promoted_dtype(input, other)
    if dtype not in FLOAT_DTYPES:
        return net.binary("DIV", input, other)
    a, b = (net.tensor(operand, torch.float32) for operand in (input, other))
    return trunc(net, net.elementwise("DIV", a, b))


@converter(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(net: Network, input: Operand, other: Operand, rounding_mode: str | None) -> Tensor:
    """div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor"""
    match rounding_mode:
        case None:
            return div(net, input, other)
        case "floor":
            return floor_divide(net, input, other)
        case _:
            return net.cast(_truncated_quotient(net, input, other), net.promoted_dtype(input, other))


@converter(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def remainder(net: Network, input: Operand, other: Operand) -> Tensor:
    """remainder.Tensor(Tensor self, Tensor other) -> Tensor"""
    _, rest = _floor_quotient_and_rest(net, input, other)
    return net.cast(rest, net.promoted_dtype(input, other))


@converter(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(net: Network, input: Operand, other: Operand) -> Tensor:
    """fmod.Tensor(Tensor self, Tensor other) -> Tensor"""
    # The rest of the absolute values, with the sign of the dividend.
    a, b = net.promote(input, other)
    dtype = a.dtype
    _, rest = _floor_quotient_and_rest(net, net.unary("ABS", a), net.unary("ABS", b))
    negative = net.elementwise("LESS", a, net.tensor(0, dtype))
    return net.cast(net.select(negative, net.unary("NEG", rest), rest), dtype)


# -- bits --------------------------------------------------------------------------------------------------------------


def _shift(operation: str) -> Callable[..., Tensor]:
    def shift(net: Network, input: Tensor, other: Operand) -> Tensor:
        a, places = net.promote(input, other)
        return net.elementwise(operation, a, net.elementwise("POW", net.tensor(2, a.dtype), places))

    return shift


for _name, _overloads, _operation in (
    ("bitwise_left_shift", ("Tensor", "Tensor_Scalar"), "PROD"),
    ("bitwise_right_shift", ("Tensor", "Tensor_Scalar"), "FLOOR_DIV"),
    ("__lshift__", ("Tensor", "Scalar"), "PROD"),
    ("__rshift__", ("Tensor", "Scalar"), "FLOOR_DIV"),
):
    converter(*(getattr(getattr(aten, _name), _overload) for _overload in _overloads))(_shift(_operation))


def _are_low_bits(mask: Any) -> bool:
    """Whether a number is one of 1, 3, 7, …."""
    return isinstance(mask, int) and mask > 0 and mask & (mask + 1) == 0


def _bits_unsupported(input: TensorSpec, other: Any) -> str | None:
    for operand in (input, other):
        dtype = operand.dtype if isinstance(operand, TensorSpec) else torch.tensor(operand).dtype
        if dtype != torch.bool:
            return f"TensorRT has no bitwise arithmetic on {dtype}"
    return None


def _and_unsupported(input: TensorSpec, other: Any) -> str | None:
    return None if _are_low_bits(other) else _bits_unsupported(input, other)


@converter(
    *(aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.__and__.Tensor, aten.__and__.Scalar),
    unsupported=_and_unsupported,
)
def bitwise_and(net: Network, input: Tensor, other: Operand) -> Tensor:
    """bitwise_and.Tensor(Tensor self, Tensor other) -> Tensor"""
    if net.promoted_dtype(input, other) == torch.bool:
        return net.binary("AND", input, other)
    # The low bits of an integer, a negative one too, are what remains after division by a power of 2.
    assert isinstance(other, int)
    return remainder(net, input, other + 1)


for _name, _operation in (("or", "OR"), ("xor", "XOR")):
    _packets = getattr(aten, f"bitwise_{_name}"), getattr(aten, f"__{_name}__")
    _targets = [getattr(packet, overload) for packet in _packets for overload in ("Tensor", "Scalar")]
    converter(*_targets, unsupported=_bits_unsupported)(logic(_operation))


@converter(aten.bitwise_not.default)
def bitwise_not(net: Network, input: Tensor) -> Tensor:
    """bitwise_not(Tensor self) -> Tensor"""
    return net.unary("NOT", input) if input.dtype == torch.bool else net.binary("SUB", -1, input)
