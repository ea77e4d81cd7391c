"""Rows of torch2trt/converters/orthogonal_polynomials.py."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.cases import normal, together
from tests.harness import OpCase

CHEBYSHEV = [f"chebyshev_polynomial_{kind}" for kind in "tuvw"]
NAMES = [
    *CHEBYSHEV,
    *(f"shifted_{name}" for name in CHEBYSHEV),
    *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
]
X, UNIT = normal(3, 20) * 2, torch.linspace(-1, 1, 41)


def of_degrees(name: str, *degrees: float) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Polynomials of a family."""
    function = getattr(torch.special, name)
    return together(*(lambda x, degree=degree: function(x, degree) for degree in degrees))


CASES = [
    *(OpCase(name, of_degrees(name, 0, 1, 2, 3, 5, 9, -1, 2.7), (X,)) for name in NAMES),
    *(OpCase(f"{name}-unit", of_degrees(name, 4, 16, 32), (UNIT,), tolerance=5) for name in NAMES),
    OpCase("polynomials-int", together(*(of_degrees(name, 0, 3) for name in NAMES)), (torch.arange(-3, 4),)),
    OpCase("polynomials-dynamic", of_degrees("hermite_polynomial_h", 0, 3), (X,), dynamic={0: {0: (1, 5)}}),
    OpCase("polynomials-high", of_degrees(CHEBYSHEV[0], 33), (X,), unsupported="of degree 33: 32 at most"),
    OpCase("polynomials-of-tensor", torch.special.laguerre_polynomial_l, (X, X.abs()), unsupported="pass a number"),
]
