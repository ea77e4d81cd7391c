"""Elementwise arithmetic and functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.trt.arithmetic import Operand
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


@converter(aten._to_copy.default)
def to_copy(net: Network, input: Tensor, dtype: torch.dtype | None, **_: Any) -> Tensor:
    """_to_copy(Tensor self, *, ScalarType? dtype=None, ...) -> Tensor"""
    return input if dtype is None else net.cast(input, dtype)


def _dropout_unsupported(train: bool | None, **_: Any) -> str | None:
    return None if train is False else "draws random numbers"


@converter(aten.native_dropout.default, unsupported=_dropout_unsupported)
def native_dropout(net: Network, input: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """native_dropout(Tensor input, float p, bool? train) -> (Tensor, Tensor)"""
    return input, net.expand(net.tensor(True), input.shape)


@converter(aten.type_as.default)
def type_as(net: Network, input: Tensor, other: Tensor) -> Tensor:
    """type_as(Tensor self, Tensor other) -> Tensor"""
    return net.cast(input, other.dtype)


# -- arithmetic of two tensors -----------------------------------------------------------------------------------------


def _binary(operation: str) -> Callable[..., Tensor]:
    def binary(net: Network, input: Operand, other: Operand) -> Tensor:
        return net.binary(operation, input, other)

    return binary


for _operation, _targets in {
    "PROD": (aten.mul.Tensor, aten.mul.Scalar),
    "MAX": (aten.maximum.default, aten.max.other),
    "MIN": (aten.minimum.default, aten.min.other),
}.items():
    converter(*_targets)(_binary(_operation))


def _times(net: Network, tensor: Tensor, factor: Operand) -> Tensor:
    """A product in the tensor's dtype."""
    return tensor if factor == 1 else net.elementwise("PROD", tensor, net.tensor(factor, tensor.dtype))


@converter(aten.add.Tensor, aten.add.Scalar)
def add(net: Network, input: Tensor, other: Operand, alpha: float) -> Tensor:
    """add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    first, second = net.promote(input, other)
    return net.elementwise("SUM", first, _times(net, second, alpha))


@converter(aten.sub.Tensor, aten.sub.Scalar)
def sub(net: Network, input: Operand, other: Operand, alpha: float) -> Tensor:
    """sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    first, second = net.promote(input, other)
    return net.elementwise("SUB", first, _times(net, second, alpha))


@converter(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(net: Network, input: Tensor, other: Operand, alpha: float) -> Tensor:
    """rsub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return sub(net, other, input, alpha)


@converter(aten.div.Tensor, aten.div.Scalar)
def div(net: Network, input: Operand, other: Operand) -> Tensor:
    """div.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = net.promoted_dtype(input, other)
    if not dtype.is_floating_point:
        dtype = torch.float32
    return net.elementwise("DIV", net.tensor(input, dtype), net.tensor(other, dtype))


@converter(aten.pow.Tensor_Scalar)
def pow_scalar(net: Network, input: Tensor, exponent: float) -> Tensor:
    """pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor"""
    base = net.tensor(input, net.promoted_dtype(input, exponent))
    if exponent in (1, 2, 3) or not base.dtype.is_floating_point:
        return whole_power(net, base, int(exponent))
    if exponent == 0.5:
        return net.unary("SQRT", base)
    if exponent == -0.5:
        return net.unary("RECIP", net.unary("SQRT", base))
    if exponent == -1:
        return net.unary("RECIP", base)
    return net.binary("POW", base, exponent)


def whole_power(net: Network, base: Tensor, exponent: int) -> Tensor:
    """A power by squaring, which of integers wraps around as torch's does; the exponent is 0 or more."""
    if exponent == 0:
        return net.expand(net.tensor(1, base.dtype), base.shape)
    result = base
    for bit in f"{exponent:b}"[1:]:
        result = net.elementwise("PROD", result, result)
        if bit == "1":
            result = net.elementwise("PROD", result, base)
    return result


_EXPONENT_BITS = 8


def _integer_powers(net: Network, base: Tensor, exponent: Tensor) -> Tensor:
    """Powers of integers, exact where the type holds them; those with negative exponents are 0, 1 or -1.

    An exponent of more bits becomes the largest of as many bits with its parity: but for powers of -1, 0 and 1, which
    that leaves as they are, all have overflowed by then.
    """
    zero, one, two = (net.tensor(number, base.dtype) for number in (0, 1, 2))

    def odd(number: Tensor) -> tuple[Tensor, Tensor]:
        half = net.elementwise("FLOOR_DIV", number, two)
        return half, net.elementwise("SUB", number, net.elementwise("PROD", half, two))

    rest, result, factor = net.unary("ABS", exponent), one, base
    _, parity = odd(rest)
    largest = net.tensor(2**_EXPONENT_BITS - 2, base.dtype)
    rest = net.elementwise("MIN", rest, net.elementwise("SUM", largest, parity))
    for _ in range(_EXPONENT_BITS):
        rest, bit = odd(rest)
        result = net.elementwise("PROD", result, net.select(net.elementwise("EQUAL", bit, one), factor, one))
        factor = net.elementwise("PROD", factor, factor)
    is_unit = net.elementwise("EQUAL", net.unary("ABS", base), one)
    inverse = net.select(is_unit, result, zero)
    return net.select(net.elementwise("LESS", exponent, zero), inverse, result)


@converter(aten.pow.Tensor_Tensor, aten.pow.Scalar)
def pow(net: Network, input: Operand, exponent: Operand) -> Tensor:
    """pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor"""
    dtype = net.promoted_dtype(input, exponent)
    if dtype.is_floating_point:
        return net.binary("POW", input, exponent)
    wide = dtype if dtype == torch.int64 else torch.int32
    return net.cast(_integer_powers(net, net.tensor(input, wide), net.tensor(exponent, wide)), dtype)


@converter(aten.square.default)
def square(net: Network, input: Tensor) -> Tensor:
    """square(Tensor self) -> Tensor"""
    return pow_scalar(net, input, 2)


@converter(aten.addcmul.default)
def addcmul(net: Network, input: Tensor, tensor1: Tensor, tensor2: Tensor, value: float) -> Tensor:
    """addcmul(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor"""
    input, tensor1, tensor2 = net.promote(input, tensor1, tensor2)
    return net.elementwise("SUM", input, net.elementwise("PROD", _times(net, tensor1, value), tensor2))


@converter(aten.addcdiv.default)
def addcdiv(net: Network, input: Tensor, tensor1: Tensor, tensor2: Tensor, value: float) -> Tensor:
    """addcdiv(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor"""
    input, tensor1, tensor2 = net.promote(input, tensor1, tensor2)
    return net.elementwise("SUM", input, net.elementwise("DIV", _times(net, tensor1, value), tensor2))


@converter(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(net: Network, input: Tensor, end: Tensor, weight: Operand) -> Tensor:
    """lerp.Tensor(Tensor self, Tensor end, Tensor weight) -> Tensor"""
    return net.elementwise("SUM", input, _times(net, net.elementwise("SUB", end, input), weight))


@converter(aten.hypot.default)
def hypot(net: Network, input: Tensor, other: Tensor) -> Tensor:
    """hypot(Tensor self, Tensor other) -> Tensor"""
    # Squares soon exceed what the type holds, but not those of the shares in the larger one.
    wide = [net.unary("ABS", net.cast(operand, torch.float32)) for operand in (input, other)]
    larger = net.elementwise("MAX", *wide)
    usable = net.elementwise("AND", net.binary("GREATER", larger, 0.0), net.binary("LESS", larger, math.inf))
    scale = net.select(usable, larger, net.tensor(1.0, torch.float32))
    shares = [net.elementwise("DIV", operand, scale) for operand in wide]
    squares = net.elementwise("SUM", *(net.elementwise("PROD", share, share) for share in shares))
    result = net.elementwise("PROD", net.unary("SQRT", squares), scale)
    # Beside an infinity even what is no number does not count.
    infinite = net.elementwise("OR", *(net.unary("ISINF", operand) for operand in wide))
    result = net.select(infinite, net.tensor(math.inf, torch.float32), result)
    return net.cast(result, net.result.dtype)


def sign_bit(net: Network, tensor: Tensor) -> Tensor:
    """Whether numbers are negative, or -0, which only shows in what it divides."""
    zero = net.tensor(0, tensor.dtype)
    below = net.elementwise("LESS", tensor, zero)
    if not tensor.dtype.is_floating_point:
        return below
    return net.elementwise("OR", below, net.elementwise("LESS", net.unary("RECIP", tensor), zero))


@converter(aten.signbit.default)
def signbit(net: Network, input: Tensor) -> Tensor:
    """signbit(Tensor self) -> Tensor"""
    return sign_bit(net, input)


@converter(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(net: Network, input: Tensor, other: Operand) -> Tensor:
    """copysign.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = net.result.dtype
    size, sign = net.unary("ABS", net.tensor(input, dtype)), net.tensor(other, dtype)
    return net.select(sign_bit(net, sign), net.unary("NEG", size), size)


@converter(aten.nextafter.default)
def nextafter(net: Network, input: Tensor, other: Tensor) -> Tensor:
    """nextafter(Tensor self, Tensor other) -> Tensor

    By a step of just over half a unit in the last place, which rounds to the next number (Rump, Zimmermann, Boldo and
    Melquiond, Computing predecessor and successor in rounding to nearest); tiny numbers are scaled up for it.
    """
    limits = torch.finfo(net.result.dtype)
    x, y = (net.cast(operand, torch.float32) for operand in (input, other))
    scale, zero = 2.0**40, net.tensor(0.0, torch.float32)
    tiny = net.binary("LESS", net.unary("ABS", x), 2.0**-60)
    scaled = net.select(tiny, net.binary("PROD", x, scale), x)
    share = limits.eps / 2 * (1 + limits.eps)
    step = net.binary("PROD", net.unary("ABS", scaled), share)
    smallest = limits.tiny * limits.eps
    least = net.select(tiny, *(net.tensor(number, torch.float32) for number in (smallest * scale, smallest)))
    step = net.elementwise("MAX", step, least)
    step = net.select(net.elementwise("GREATER", y, x), step, net.unary("NEG", step))
    moved = net.elementwise("SUM", scaled, step)
    moved = net.select(tiny, net.binary("PROD", moved, 1 / scale), moved)
    # From infinity to the largest number; and none from what is none, or is there.
    largest = net.tensor(limits.max, torch.float32)
    largest = net.select(net.elementwise("LESS", x, zero), net.unary("NEG", largest), largest)
    moved = net.select(net.unary("ISINF", x), largest, moved)
    moved = net.select(net.elementwise("EQUAL", x, y), y, moved)
    is_nan = net.elementwise("OR", net.unary("ISNAN", x), net.unary("ISNAN", y))
    moved = net.select(is_nan, net.tensor(math.nan, torch.float32), moved)
    return net.cast(moved, net.result.dtype)


@converter(aten.atan2.default)
def atan2(net: Network, input: Tensor, other: Tensor) -> Tensor:
    """atan2(Tensor self, Tensor other) -> Tensor"""
    dtype = net.promoted_dtype(input, other)
    y, x = (net.tensor(operand, dtype if dtype.is_floating_point else torch.float32) for operand in (input, other))
    # Two infinities, and two zeros, have no quotient: the first are as good as ones, the second leave y as the angle.
    infinite = net.elementwise("AND", net.unary("ISINF", y), net.unary("ISINF", x))
    y, x = (net.select(infinite, net.unary("SIGN", operand), operand) for operand in (y, x))
    zero, half_turn = net.tensor(0.0, y.dtype), net.tensor(math.pi, y.dtype)
    origin = net.elementwise("AND", net.elementwise("EQUAL", x, zero), net.elementwise("EQUAL", y, zero))
    angle = net.select(origin, y, net.unary("ATAN", net.elementwise("DIV", y, x)))
    turn = net.select(sign_bit(net, y), net.unary("NEG", half_turn), half_turn)
    return net.select(sign_bit(net, x), net.elementwise("SUM", angle, turn), angle)


@converter(aten.angle.default)
def angle(net: Network, input: Tensor) -> Tensor:
    """angle(Tensor self) -> Tensor"""
    # Of a real number: half a turn where it is negative, nothing where not, and no number where it is none.
    dtype = net.result.dtype
    turn = net.select(net.binary("LESS", input, 0), net.tensor(math.pi, dtype), net.tensor(0.0, dtype))
    return turn if not input.dtype.is_floating_point else net.select(net.unary("ISNAN", input), input, turn)


# -- functions of one tensor -------------------------------------------------------------------------------------------


def _unary(operation: str) -> Callable[..., Tensor]:
    def unary(net: Network, input: Tensor) -> Tensor:
        return net.unary(operation, input)

    return unary


for _name in (
    *("exp", "log", "sqrt", "erf", "sin", "cos", "tan", "sinh", "cosh"),
    *("asin", "acos", "atan", "asinh", "acosh", "atanh"),
):
    converter(getattr(aten, _name).default)(_unary(_name.upper()))
converter(aten.reciprocal.default)(_unary("RECIP"))


def _of_same_type(operation: str) -> Callable[..., Tensor]:
    def unary(net: Network, input: Tensor) -> Tensor:
        return net.cast(net.unary(operation, input), input.dtype)

    return unary


converter(aten.abs.default)(_of_same_type("ABS"))
converter(aten.neg.default)(_of_same_type("NEG"))
converter(aten.sign.default, aten.sgn.default)(_of_same_type("SIGN"))


def _rounding(operation: str) -> Callable[..., Tensor]:
    def rounding(net: Network, input: Tensor) -> Tensor:
        return net.unary(operation, input) if input.dtype.is_floating_point else input

    return rounding


for _name in ("floor", "ceil", "round"):
    converter(getattr(aten, _name).default)(_rounding(_name.upper()))


@converter(aten.round.decimals)
def round_decimals(net: Network, input: Tensor, decimals: int) -> Tensor:
    """round.decimals(Tensor self, *, int decimals) -> Tensor"""
    if not input.dtype.is_floating_point:
        return input
    factor = net.tensor(10.0 ** abs(decimals), input.dtype)
    there, back = ("PROD", "DIV") if decimals > 0 else ("DIV", "PROD")
    return net.elementwise(back, net.unary("ROUND", net.elementwise(there, input, factor)), factor)


@converter(aten.trunc.default)
def trunc(net: Network, input: Tensor) -> Tensor:
    """trunc(Tensor self) -> Tensor"""
    if not input.dtype.is_floating_point:
        return input
    negative = net.elementwise("LESS", input, net.tensor(0.0, input.dtype))
    return net.select(negative, net.unary("CEIL", input), net.unary("FLOOR", input))


@converter(aten.frac.default)
def frac(net: Network, input: Tensor) -> Tensor:
    """frac(Tensor self) -> Tensor"""
    return net.elementwise("SUB", input, trunc(net, input))


@converter(aten.rsqrt.default)
def rsqrt(net: Network, input: Tensor) -> Tensor:
    """rsqrt(Tensor self) -> Tensor"""
    return net.unary("RECIP", net.unary("SQRT", input))


def _logarithm(base: float) -> Callable[..., Tensor]:
    def logarithm(net: Network, input: Tensor) -> Tensor:
        return net.binary("PROD", net.unary("LOG", input), 1 / math.log(base))

    return logarithm


converter(aten.log2.default)(_logarithm(2))
converter(aten.log10.default)(_logarithm(10))


def _as_float(net: Network, tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.is_floating_point else net.cast(tensor, torch.float32)


@converter(aten.log1p.default)
def log1p(net: Network, input: Tensor) -> Tensor:
    """log1p(Tensor self) -> Tensor"""
    # Near 0 the sum 1 + x drops most of x: there it is 2 artanh(x / (x + 2)).
    input = _as_float(net, input)
    one, two = (net.tensor(number, input.dtype) for number in (1.0, 2.0))
    ratio = net.elementwise("DIV", input, net.elementwise("SUM", input, two))
    near = net.elementwise("PROD", net.unary("ATANH", ratio), two)
    far = net.unary("LOG", net.elementwise("SUM", input, one))
    return net.select(net.elementwise("LESS", input, one), near, far)


@converter(aten.expm1.default)
def expm1(net: Network, input: Tensor) -> Tensor:
    """expm1(Tensor self) -> Tensor"""
    # The difference exp(x) - 1 drops most of a small x; tanh(x / 2) (exp(x) + 1) is the same number.
    input = _as_float(net, input)
    half, one = (net.tensor(number, input.dtype) for number in (0.5, 1.0))
    slope = net.activation("TANH", net.elementwise("PROD", input, half))
    return net.elementwise("PROD", slope, net.elementwise("SUM", net.unary("EXP", input), one))


@converter(aten.exp2.default)
def exp2(net: Network, input: Tensor) -> Tensor:
    """exp2(Tensor self) -> Tensor"""
    return net.binary("POW", 2.0, _as_float(net, input))
