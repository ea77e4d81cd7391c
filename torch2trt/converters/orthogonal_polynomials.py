"""Orthogonal polynomials of a known degree, in float32, by their recurrences."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torch2trt.converters.registry import converter, refuse
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_HIGHEST = 32  # beyond, float32 loses more than five digits at the ends

# The first polynomial, c x + d, and from the k-th and the one before it the next: (a x + b) p - c q.
_FAMILIES: dict[str, tuple[tuple[float, float], Callable[[int], tuple[float, float, float]]]] = {
    "chebyshev_polynomial_t": ((1, 0), lambda k: (2, 0, 1)),
    "chebyshev_polynomial_u": ((2, 0), lambda k: (2, 0, 1)),
    "chebyshev_polynomial_v": ((2, -1), lambda k: (2, 0, 1)),
    "chebyshev_polynomial_w": ((2, 1), lambda k: (2, 0, 1)),
    "hermite_polynomial_h": ((2, 0), lambda k: (2, 0, 2 * k)),
    "hermite_polynomial_he": ((1, 0), lambda k: (1, 0, k)),
    "laguerre_polynomial_l": ((-1, 1), lambda k: (-1 / (k + 1), (2 * k + 1) / (k + 1), k / (k + 1))),
    "legendre_polynomial_p": ((1, 0), lambda k: ((2 * k + 1) / (k + 1), 0, k / (k + 1))),
}
_SHIFTED = [f"chebyshev_polynomial_{kind}" for kind in "tuvw"]


def _linear(net: Network, x: Tensor, slope: float, offset: float) -> Tensor:
    product = net.binary("PROD", x, float(slope))
    return net.binary("SUM", product, float(offset)) if offset else product


def _degree_unsupported(n: float, **_: object) -> str | None:
    return f"a polynomial of degree {int(n)}: {_HIGHEST} at most" if n > _HIGHEST else None


def _polynomial(family: str, *, shifted: bool) -> Callable[..., Tensor]:
    first, step = _FAMILIES[family]

    def polynomial(net: Network, x: Tensor, n: float) -> Tensor:
        """special_legendre_polynomial_p.n_scalar(Tensor x, Scalar n) -> Tensor"""
        dtype, degree = net.result.dtype, int(n)
        if degree < 1:
            return net.expand(net.tensor(float(degree == 0), dtype), x.shape)
        x = net.cast(x, torch.float32)
        x = _linear(net, x, 2, -1) if shifted else x
        before, last = net.tensor(1.0, torch.float32), _linear(net, x, *first)
        for k in range(1, degree):
            slope, offset, share = step(k)
            product = net.elementwise("PROD", _linear(net, x, slope, offset), last)
            before, last = last, net.elementwise("SUB", product, net.binary("PROD", before, float(share)))
        return net.cast(last, dtype)

    return polynomial


for _names, _are_shifted in ((_FAMILIES, False), (_SHIFTED, True)):
    for _family in _names:
        _name = f"special_{'shifted_' * _are_shifted}{_family}"
        converter(getattr(aten, _name).n_scalar, unsupported=_degree_unsupported)(
            _polynomial(_family, shifted=_are_shifted)
        )
        refuse(
            *(f"aten.{_name}.{overload}" for overload in ("default", "x_scalar")),
            reason="the degrees of the polynomials are values of a tensor: pass a number",
        )
