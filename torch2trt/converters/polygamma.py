"""The derivatives of the logarithm of the gamma function, and Hurwitz's zeta function of a whole number and a tensor.

Euler and Maclaurin's sum, in float32; of numbers that are not positive the reflection, whose derivatives are
polynomials in the cotangent. Poles are infinite, where torch may yield the large number that rounding makes of them.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from torch2trt.converters.elementwise import whole_power
from torch2trt.converters.registry import converter, refuse
from torch2trt.converters.special import digamma, polynomial, split_at_zero, where
from torch2trt.sizes import volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_HIGHEST = 20  # the factors of the cotangent's powers soon exceed float32
_BERNOULLI = (Fraction(1, 6), Fraction(-1, 30), Fraction(1, 42), Fraction(-1, 30), Fraction(5, 66))

refuse(
    *("aten.special_zeta.default", "aten.special_zeta.other_scalar", "aten.igamma.default", "aten.igammac.default"),
    reason="how many terms of its series count depends on the values",
)


def _positive(net: Network, x: Tensor, order: int, factor: float) -> Tensor:
    """``factor * zeta(order + 1, x)`` of positive numbers."""
    # The root of the factor goes into what is raised to the power: neither overflows alone.
    root = factor ** (1 / (order + 1))
    steps = max(8, order + 1)
    shifted = net.binary(
        "SUM", net.reshape(x, (volume(x.shape), 1)), net.constant(torch.arange(steps, dtype=torch.float32))
    )
    terms = whole_power(net, net.binary("DIV", root, shifted), order + 1)
    result = net.reshape(net.reduce("SUM", terms, [1], False), x.shape)
    inverse = net.unary("RECIP", net.binary("SUM", x, float(steps)))
    series = [1 / order, 0.5]
    rising = Fraction(order + 1)
    for index, number in enumerate(_BERNOULLI, 1):
        series += [float(number * rising / math.factorial(2 * index)), 0.0]
        rising *= (order + 2 * index) * (order + 2 * index + 1)
    tail = net.binary("PROD", polynomial(net, inverse, series[:-1]), root)
    tail = net.elementwise("PROD", tail, whole_power(net, net.binary("PROD", inverse, root), order))
    return net.elementwise("SUM", result, tail)


def _derivative_of_cotangent(order: int) -> list[int]:
    """By power of the cotangent, the lowest first: ``d^n cot(x) / dx^n``, ``-(1 + c²)`` times the derivative by c."""
    factors = [0, 1]
    for _ in range(order):
        slopes = [power * factor for power, factor in enumerate(factors)][1:]
        factors = [0] * (len(slopes) + 2)
        for power, slope in enumerate(slopes):
            factors[power] -= slope
            factors[power + 2] -= slope
    return factors


def _zeta(net: Network, x: Tensor, order: int, factor: float) -> Tensor:
    """``factor * zeta(order + 1, x)``."""
    positive, reflected, fraction = split_at_zero(net, x)
    value = _positive(net, reflected, order, factor)
    # Of x or of 1 - x.
    sign = (-1) ** order
    cotangent = net.unary("RECIP", net.unary("TAN", net.binary("PROD", fraction, math.pi)))
    share = math.pi ** (order + 1) * factor / math.factorial(order) * sign
    slopes = polynomial(net, cotangent, [share * each for each in _derivative_of_cotangent(order)])
    mirrored = net.elementwise("SUM", slopes, net.binary("PROD", value, float(sign)))
    whole = net.elementwise("AND", net.binary("EQUAL", fraction, 0.0), net.unary("NOT", positive))
    return where(net, whole, math.inf, net.select(positive, value, mirrored))


def _polygamma_unsupported(n: int, **_: object) -> str | None:
    return f"the polygamma function of order {n}: {_HIGHEST} at most" if n > _HIGHEST else None


@converter(aten.polygamma.default, unsupported=_polygamma_unsupported)
def polygamma(net: Network, n: int, input: Tensor) -> Tensor:
    """polygamma(int n, Tensor self) -> Tensor"""
    x, dtype = net.cast(input, torch.float32), net.result.dtype
    if n == 0:
        return net.cast(digamma(net, x), dtype)
    value = _zeta(net, x, n, float(math.factorial(n)))
    return net.cast(value if n % 2 else net.unary("NEG", value), dtype)


def _zeta_unsupported(input: float, **_: object) -> str | None:
    if input != int(input) or not 2 <= input <= _HIGHEST + 1:
        return f"the zeta function of {input}: whole numbers from 2 to {_HIGHEST + 1}"
    return None


@converter(aten.special_zeta.self_scalar, unsupported=_zeta_unsupported)
def zeta(net: Network, input: float, other: Tensor) -> Tensor:
    """special_zeta.self_scalar(Scalar self, Tensor other) -> Tensor"""
    value = _zeta(net, net.cast(other, torch.float32), int(input) - 1, 1.0)
    return net.cast(value, net.result.dtype)
