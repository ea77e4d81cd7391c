"""Special functions, in float32: polynomials and series that are right to a few units in the last place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch

from torch2trt.converters.elementwise import sign_bit
from torch2trt.converters.registry import converter
from torch2trt.trt.arithmetic import Operand
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

Function = Callable[[Network, Tensor], Tensor]
"""Of a float32 tensor."""


def in_float32(function: Function) -> Callable[..., Tensor]:
    """The converter of an operator of one tensor that a function computes in float32."""

    def converted(net: Network, **operands: Tensor) -> Tensor:
        (input,) = operands.values()
        return net.cast(function(net, net.cast(input, torch.float32)), net.result.dtype)

    return converted


def polynomial(net: Network, x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """``c0 + c1 x + c2 x² …``, by Horner's rule."""
    *others, highest = coefficients
    result = net.binary("SUM", net.binary("PROD", x, highest), others.pop())
    for coefficient in reversed(others):
        result = net.binary("SUM", net.elementwise("PROD", result, x), coefficient)
    return result


def _sum(net: Network, *terms: Tensor) -> Tensor:
    return reduce(lambda first, second: net.elementwise("SUM", first, second), terms)


def where(net: Network, condition: Tensor, then: Operand, otherwise: Operand) -> Tensor:
    """One or the other number, in float32."""
    return net.select(condition, *(net.tensor(operand, torch.float32) for operand in (then, otherwise)))


# -- the normal distribution -------------------------------------------------------------------------------------------

# Numerators and denominators of Wichura's algorithm AS 241, PPND7.
_CENTRAL = (
    (3.3871327179, 50.434271938, 159.29113202, 59.109374720),
    (1.0, 17.895169469, 78.757757664, 67.187563600),
)
_MIDDLE = (
    (1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103),
    (1.0, 0.73700164250, 0.12021132975),
)
_FAR = (
    (6.6579051150, 3.0812263860, 0.42868294337, 0.017337203997),
    (1.0, 0.24197894225, 0.012258202635),
)


def _ratio(net: Network, x: Tensor, polynomials: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    return net.elementwise("DIV", *(polynomial(net, x, coefficients) for coefficients in polynomials))


def _quantile(net: Network, centered: Tensor, tail: Tensor) -> Tensor:
    """The normal distribution's quantile.

    Args:
        centered: the probability less 1/2.
        tail: the probability, or 1 less it, whichever is smaller; given because the first loses its digits.
    """
    near = _ratio(net, net.binary("SUB", 0.180625, net.elementwise("PROD", centered, centered)), _CENTRAL)
    near = net.elementwise("PROD", centered, near)
    root = net.unary("SQRT", net.unary("NEG", net.unary("LOG", tail)))
    middle = _ratio(net, net.binary("SUB", root, 1.6), _MIDDLE)
    far = _ratio(net, net.binary("SUB", root, 5.0), _FAR)
    size = net.select(net.binary("LESS", root, 5.0), middle, far)
    size = where(net, net.binary("EQUAL", tail, 0.0), math.inf, size)
    outer = net.select(net.binary("LESS", centered, 0.0), net.unary("NEG", size), size)
    return net.select(net.binary("LESS", net.unary("ABS", centered), 0.425), near, outer)


def _erfinv(net: Network, x: Tensor) -> Tensor:
    tail = net.binary("PROD", net.binary("SUB", 1.0, net.unary("ABS", x)), 0.5)
    return net.binary("PROD", _quantile(net, net.binary("PROD", x, 0.5), tail), math.sqrt(0.5))


def _ndtri(net: Network, p: Tensor) -> Tensor:
    tail = net.elementwise("MIN", p, net.binary("SUB", 1.0, p))
    return _quantile(net, net.binary("SUB", p, 0.5), tail)


_ERFCX = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)


def _right_erfcx(net: Network, z: Tensor) -> Tensor:
    # erfc(z) exp(z²) for z >= 0 is t exp(P(t)), t = 2 / (2 + z).
    t = net.binary("DIV", 2.0, net.binary("SUM", z, 2.0))
    return net.elementwise("PROD", t, net.unary("EXP", polynomial(net, t, _ERFCX)))


def _erfc(net: Network, x: Tensor) -> Tensor:
    # The difference 1 - erf(x) has no digits left where x is large.
    size = net.binary("MIN", net.unary("ABS", x), 11.0)  # where erfc is 0 in float32
    # exp(-x²) would lose those of x² that are cut off: the square of a few bits of x is exact, the rest is small.
    coarse = net.binary("DIV", net.unary("ROUND", net.binary("PROD", size, 8.0)), 8.0)
    rest = net.elementwise("PROD", net.elementwise("SUB", coarse, size), net.elementwise("SUM", coarse, size))
    square = net.elementwise("PROD", coarse, coarse)
    falling = net.elementwise("PROD", net.unary("EXP", net.unary("NEG", square)), net.unary("EXP", rest))
    tail = net.elementwise("PROD", _right_erfcx(net, size), falling)
    return net.select(net.binary("GREATER", x, 0.5), tail, net.binary("SUB", 1.0, net.unary("ERF", x)))


def _erfcx(net: Network, x: Tensor) -> Tensor:
    right = _right_erfcx(net, net.unary("ABS", x))
    twice = net.binary("PROD", net.unary("EXP", net.elementwise("PROD", x, x)), 2.0)
    return net.select(net.binary("LESS", x, 0.0), net.elementwise("SUB", twice, right), right)


# -- the gamma function ------------------------------------------------------------------------------------------------


def split_at_zero(net: Network, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether x is positive; x, or 1 - x where not; and how far the nearest whole number is below x."""
    positive = net.binary("GREATER", x, 0.0)
    reflected = net.select(positive, x, net.binary("SUB", 1.0, x))
    return positive, reflected, net.elementwise("SUB", x, net.unary("ROUND", x))


# lgamma(2 + t) / (t (t + 1)) from -1 to 1.
_LGAMMA = (
    *(0.4227843262, -0.1003172731, 0.0329656257, -0.01238497512, 0.004991560907, -0.002102061573),
    *(0.0009442966278, -0.0004255713845, 0.000130632434, -5.241942557e-05, 7.817563154e-05, -3.873421622e-05),
)


def _lgamma(net: Network, x: Tensor) -> Tensor:
    positive, z, fraction = split_at_zero(net, x)
    below_one = net.binary("LESS", z, 1.0)
    y = net.select(below_one, net.binary("SUM", z, 1.0), z)
    # From 1 to 3 the polynomial, exact where lgamma is 0.
    t = net.binary("MIN", net.binary("SUB", y, 2.0), 1.0)
    near = net.elementwise("PROD", t, net.binary("SUM", t, 1.0))
    near = net.elementwise("PROD", near, polynomial(net, t, _LGAMMA))
    # Beyond, Stirling's series, which needs a large argument: (y + 5)! / y! as a factor.
    small = net.binary("LESS", y, 8.0)
    least = net.binary("MIN", y, 8.0)
    factors = [net.binary("SUM", least, float(step)) for step in range(5)]
    product = reduce(lambda first, second: net.elementwise("PROD", first, second), factors)
    w = net.select(small, net.binary("SUM", y, 5.0), y)
    inverse = net.unary("RECIP", w)
    series = polynomial(net, net.elementwise("PROD", inverse, inverse), (1 / 12, -1 / 360, 1 / 1260, -1 / 1680))
    logarithm = net.unary("LOG", w)
    far = net.elementwise("PROD", w, net.binary("SUB", logarithm, 1.0))
    far = _sum(net, far, net.binary("PROD", logarithm, -0.5), net.elementwise("PROD", series, inverse))
    far = net.binary("SUM", far, 0.5 * math.log(2 * math.pi))
    far = net.elementwise("SUB", far, where(net, small, net.unary("LOG", product), 0.0))
    value = net.select(net.binary("LESS", y, 3.0), near, far)
    value = net.elementwise("SUB", value, where(net, below_one, net.unary("LOG", z), 0.0))
    # Of the others the reflection, pi / |sin(pi x)|.
    sine = net.unary("ABS", net.unary("SIN", net.binary("PROD", fraction, math.pi)))
    mirrored = net.elementwise("SUB", net.unary("LOG", net.binary("DIV", math.pi, sine)), value)
    whole = net.elementwise("AND", net.binary("EQUAL", fraction, 0.0), net.unary("NOT", positive))
    result = net.select(positive, value, mirrored)
    result = where(net, whole, math.inf, result)
    return where(net, net.unary("ISINF", x), math.inf, result)


def digamma(net: Network, x: Tensor) -> Tensor:
    """The derivative of the logarithm of the gamma function, of float32."""
    positive, z, fraction = split_at_zero(net, x)
    # The asymptotic series needs a large argument: six steps up.
    small = net.binary("LESS", z, 6.0)
    least = net.binary("MIN", z, 6.0)
    steps = _sum(net, *(net.unary("RECIP", net.binary("SUM", least, float(step))) for step in range(6)))
    w = net.select(small, net.binary("SUM", z, 6.0), z)
    inverse = net.unary("RECIP", w)
    square = net.elementwise("PROD", inverse, inverse)
    series = net.elementwise("PROD", square, polynomial(net, square, (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132)))
    value = net.elementwise("SUB", net.unary("LOG", w), net.binary("PROD", inverse, 0.5))
    value = net.elementwise("SUB", value, series)
    value = net.elementwise("SUB", value, where(net, small, steps, 0.0))
    slope = net.binary("DIV", math.pi, net.unary("TAN", net.binary("PROD", fraction, math.pi)))
    result = net.select(positive, value, net.elementwise("SUB", value, slope))
    # The poles: of zero by its sign, no number below it.
    whole = net.elementwise("AND", net.binary("EQUAL", fraction, 0.0), net.unary("NOT", positive))
    result = where(net, whole, math.nan, result)
    at_zero = where(net, sign_bit(net, x), math.inf, -math.inf)
    return net.select(net.binary("EQUAL", x, 0.0), at_zero, result)


for _target, _function in (
    (aten.erfinv.default, _erfinv),
    (aten.special_ndtri.default, _ndtri),
    (aten.erfc.default, _erfc),
    (aten.special_erfcx.default, _erfcx),
    (aten.lgamma.default, _lgamma),
    (aten.digamma.default, digamma),
):
    converter(_target)(in_float32(_function))


# -- powers of two -----------------------------------------------------------------------------------------------------


@converter(aten.ldexp.Tensor)
def ldexp(net: Network, input: Tensor, other: Tensor) -> Tensor:
    """ldexp.Tensor(Tensor self, Tensor other) -> Tensor"""
    wide, exponent = (net.cast(operand, torch.float32) for operand in (input, other))
    return net.cast(net.elementwise("PROD", wide, net.binary("POW", 2.0, exponent)), net.result.dtype)


_REACH = 90  # more than half of a float32's exponents


@converter(aten.frexp.Tensor)
def frexp(net: Network, input: Tensor) -> tuple[Tensor, Tensor]:
    """frexp.Tensor(Tensor self) -> (Tensor mantissa, Tensor exponent)"""
    x = net.cast(input, torch.float32)
    size = net.unary("ABS", x)
    known = net.elementwise("AND", net.binary("GREATER", size, 0.0), net.binary("LESS", size, math.inf))
    usable = where(net, known, size, 1.0)
    exponent = net.unary("FLOOR", net.binary("PROD", net.unary("LOG", usable), 1 / math.log(2)))
    exponent = net.binary("SUM", net.cast(exponent, torch.int32), 1)
    powers = net.constant(2.0 ** torch.arange(-_REACH, _REACH + 1, dtype=torch.float32))
    half = net.binary("FLOOR_DIV", exponent, 2)
    for step in (half, net.elementwise("SUB", exponent, half)):
        factor = net.gather(powers, net.binary("SUB", _REACH, step), 0)
        usable = net.elementwise("PROD", usable, factor)
    # The logarithm is rounded: next to a power of two it may say the wrong side.
    large, small = net.unary("NOT", net.binary("LESS", usable, 1.0)), net.binary("LESS", usable, 0.5)
    correction = net.select(large, net.tensor(1, torch.int32), net.tensor(0, torch.int32))
    correction = net.select(small, net.tensor(-1, torch.int32), correction)
    factor = where(net, large, 0.5, where(net, small, 2.0, 1.0))
    mantissa = net.elementwise("PROD", net.elementwise("PROD", usable, factor), net.unary("SIGN", x))
    exponent = net.select(known, net.elementwise("SUM", exponent, correction), net.tensor(0, torch.int32))
    return net.cast(net.select(known, mantissa, x), input.dtype), exponent
