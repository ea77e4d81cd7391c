"""Bessel functions, in float32: the polynomials of Abramowitz and Stegun's handbook, 9.4 and 9.8.

Modified ones are polynomials in a power of x near zero and in its inverse beyond, those of the second kind with a
logarithm near zero; the others are waves beyond, of which the polynomials are the height and the phase.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from torch2trt.converters.registry import converter, refuse
from torch2trt.converters.special import Function, in_float32, polynomial, where
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

refuse("aten.special_airy_ai.default", reason="TensorRT has no Airy function")

Tables = tuple[Sequence[float], ...]


def _square_of_share(net: Network, size: Tensor, end: float) -> Tensor:
    share = net.binary("DIV", net.binary("MIN", size, end), end)
    return net.elementwise("PROD", share, share)


def _signed(net: Network, x: Tensor, value: Tensor) -> Tensor:
    """An odd function, from its value of the absolute number."""
    return net.select(net.binary("LESS", x, 0.0), net.unary("NEG", value), value)


def _halved_logarithm(net: Network, x: Tensor) -> Tensor:
    return net.unary("LOG", net.binary("PROD", x, 0.5))


# -- of the first and the second kind ----------------------------------------------------------------------------------

# Near zero, 9.4.1, 9.4.4, 9.4.2, 9.4.5, and the height and the phase beyond 3, 9.4.3 and 9.4.6.
_J0_NEAR = (1.0, -2.2499997, 1.2656208, -0.3163866, 0.0444479, -0.0039444, 0.0002100)
_J1_NEAR = (0.5, -0.56249985, 0.21093573, -0.03954289, 0.00443319, -0.00031761, 0.00001109)
_Y0_NEAR = (0.36746691, 0.60559366, -0.74350384, 0.25300117, -0.04261214, 0.00427916, -0.00024846)
_Y1_NEAR = (-0.6366198, 0.2212091, 2.1682709, -1.3164827, 0.3123951, -0.0400976, 0.0027873)
_WAVES = (
    (
        (0.79788456, -0.00000077, -0.00552740, -0.00009512, 0.00137237, -0.00072805, 0.00014476),
        (-0.78539816, -0.04166397, -0.00003954, 0.00262573, -0.00054125, -0.00029333, 0.00013558),
    ),
    (
        (0.79788456, 0.00000156, 0.01659667, 0.00017105, -0.00249511, 0.00113653, -0.00020033),
        (-2.35619449, 0.12499612, 0.00005650, -0.00637879, 0.00074348, 0.00079824, -0.00029166),
    ),
)
_END = 3.0


def _wave(net: Network, size: Tensor, order: int, function: str) -> Tensor:
    beyond = net.binary("MAX", size, _END)
    share = net.binary("DIV", _END, beyond)
    height, phase = (polynomial(net, share, table) for table in _WAVES[order])
    wave = net.elementwise("PROD", height, net.unary(function, net.elementwise("SUM", beyond, phase)))
    return net.elementwise("DIV", wave, net.unary("SQRT", beyond))


def _first_near(net: Network, size: Tensor, order: int) -> Tensor:
    near = polynomial(net, _square_of_share(net, size, _END), (_J0_NEAR, _J1_NEAR)[order])
    return net.elementwise("PROD", near, size) if order else near


def _first_kind(order: int) -> Function:
    def first_kind(net: Network, x: Tensor) -> Tensor:
        size = net.unary("ABS", x)
        value = net.select(
            net.binary("LESS", size, _END), _first_near(net, size, order), _wave(net, size, order, "COS")
        )
        return _signed(net, x, value) if order else value

    return first_kind


def _second_kind(order: int) -> Function:
    def second_kind(net: Network, x: Tensor) -> Tensor:
        near = polynomial(net, _square_of_share(net, x, _END), (_Y0_NEAR, _Y1_NEAR)[order])
        if order:
            near = net.elementwise("DIV", near, x)
        logarithm = net.elementwise("PROD", _halved_logarithm(net, x), _first_near(net, x, order))
        near = net.elementwise("SUM", near, net.binary("PROD", logarithm, 2 / math.pi))
        value = net.select(net.binary("LESS", x, _END), near, _wave(net, x, order, "SIN"))
        return _of_positive(net, x, value, -math.inf)

    return second_kind


def _of_positive(net: Network, x: Tensor, value: Tensor, at_zero: float) -> Tensor:
    value = where(net, net.binary("EQUAL", x, 0.0), at_zero, value)
    return where(net, net.binary("LESS", x, 0.0), math.nan, value)


# -- modified ----------------------------------------------------------------------------------------------------------

# 9.8.1 to 9.8.4: in (x / 3.75)² up to 3.75, and in 3.75 / x beyond.
_I0 = (
    (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813),
    *((0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281, -0.02057706, 0.02635537, -0.01647633, 0.00392377),),
)
_I1 = (
    (0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411),
    *(
        (
            0.39894228,
            -0.03988024,
            -0.00362018,
            0.00163801,
            -0.01031555,
            0.02282967,
            -0.02895312,
            0.01787654,
            -0.00420059,
        ),
    ),
)

# 9.8.5 to 9.8.8: in (x / 2)² up to 2, and in 2 / x beyond.
_K0 = (
    (-0.57721566, 0.42278420, 0.23069756, 0.03488590, 0.00262698, 0.00010750, 0.00000740),
    (1.25331414, -0.07832358, 0.02189568, -0.01062446, 0.00587872, -0.00251540, 0.00053208),
)
_K1 = (
    (1.0, 0.15443144, -0.67278579, -0.18156897, -0.01919402, -0.00110404, -0.00004686),
    (1.25331414, 0.23498619, -0.03655620, 0.01504268, -0.00780353, 0.00325614, -0.00068245),
)


def _modified_near(net: Network, size: Tensor, tables: Tables, odd: bool) -> Tensor:
    near = polynomial(net, _square_of_share(net, size, 3.75), tables[0])
    return net.elementwise("PROD", near, size) if odd else near


def _modified_first(tables: Tables, *, odd: bool, scaled: bool) -> Function:
    def modified_first(net: Network, x: Tensor) -> Tensor:
        size = net.unary("ABS", x)
        near = _modified_near(net, size, tables, odd)
        beyond = net.binary("MAX", size, 3.75)
        far = polynomial(net, net.binary("DIV", 3.75, beyond), tables[1])
        far = net.elementwise("DIV", far, net.unary("SQRT", beyond))
        if scaled:
            near = net.elementwise("PROD", near, net.unary("EXP", net.unary("NEG", size)))
        else:
            # In two steps: the exponential overflows before the product does.
            growth = net.unary("EXP", net.binary("PROD", beyond, 0.5))
            far = net.elementwise("PROD", net.elementwise("PROD", far, growth), growth)
        result = net.select(net.binary("LESS", size, 3.75), near, far)
        return _signed(net, x, result) if odd else result

    return modified_first


def _modified_second(order: int, *, scaled: bool) -> Function:
    tables = (_K0, _K1)[order]

    def modified_second(net: Network, x: Tensor) -> Tensor:
        logarithm = net.elementwise(
            "PROD", _halved_logarithm(net, x), _modified_near(net, x, (_I0, _I1)[order], order > 0)
        )
        near = polynomial(net, _square_of_share(net, x, 2.0), tables[0])
        if order:
            near = net.elementwise("SUM", logarithm, net.elementwise("DIV", near, x))
        else:
            near = net.elementwise("SUB", near, logarithm)
        beyond = net.binary("MAX", x, 2.0)
        far = polynomial(net, net.binary("DIV", 2.0, beyond), tables[1])
        far = net.elementwise("DIV", far, net.unary("SQRT", beyond))
        if scaled:
            near = net.elementwise("PROD", near, net.unary("EXP", x))
        else:
            far = net.elementwise("PROD", far, net.unary("EXP", net.unary("NEG", beyond)))
        return _of_positive(net, x, net.select(net.binary("LESS", x, 2.0), near, far), math.inf)

    return modified_second


def _keeping_nan(function: Function) -> Function:
    """As it is, but for NaN, of which TensorRT's extremes make a number."""

    def keeping_nan(net: Network, x: Tensor) -> Tensor:
        return net.select(net.unary("ISNAN", x), x, function(net, x))

    return keeping_nan


for _target, _function in (
    (aten.special_bessel_j0.default, _first_kind(0)),
    (aten.special_bessel_j1.default, _first_kind(1)),
    (aten.special_bessel_y0.default, _second_kind(0)),
    (aten.special_bessel_y1.default, _second_kind(1)),
    (aten.i0.default, _modified_first(_I0, odd=False, scaled=False)),
    (aten.special_i0e.default, _modified_first(_I0, odd=False, scaled=True)),
    (aten.special_i1.default, _modified_first(_I1, odd=True, scaled=False)),
    (aten.special_i1e.default, _modified_first(_I1, odd=True, scaled=True)),
    (aten.special_modified_bessel_k0.default, _modified_second(0, scaled=False)),
    (aten.special_modified_bessel_k1.default, _modified_second(1, scaled=False)),
    (aten.special_scaled_modified_bessel_k0.default, _modified_second(0, scaled=True)),
    (aten.special_scaled_modified_bessel_k1.default, _modified_second(1, scaled=True)),
):
    converter(_target)(in_float32(_keeping_nan(_function)))
