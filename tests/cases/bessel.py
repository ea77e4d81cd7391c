"""Rows of torch2trt/converters/bessel.py."""

from __future__ import annotations

import math

import torch

from tests.cases import normal, together
from tests.harness import OpCase

special = torch.special
X = normal(4, 50) * 4
FIRST = together(special.bessel_j0, special.bessel_j1, special.spherical_bessel_j0)
SECOND = together(special.bessel_y0, special.bessel_y1)
MODIFIED = together(special.modified_bessel_i0, special.modified_bessel_i1)
DECAYING = together(
    *(special.modified_bessel_k0, special.modified_bessel_k1),
    *(special.scaled_modified_bessel_k0, special.scaled_modified_bessel_k1),
)
# Relative to the largest of a row's results: each magnitude by itself.
RANGES = {"near": (0.05, 1), "middle": (1, 4), "far": (4, 30)}

CASES = [
    OpCase("bessel", together(torch.i0, special.i0e, special.i1, special.i1e), (X,)),
    OpCase("bessel-large", together(torch.i0, special.i0e, special.i1, special.i1e), (torch.tensor([-90.0, 89.5]),)),
    OpCase("bessel-nan", together(torch.i0, special.i0e, special.i1, special.i1e), (torch.tensor([math.nan, 1.0]),)),
    OpCase("bessel-dynamic", torch.i0, (X,), dynamic={0: {0: (1, 5)}}),
    OpCase("bessel-of-bessel", MODIFIED, (X,)),
    OpCase("bessel-first", FIRST, (X,)),
    OpCase("bessel-first-ends", FIRST, (torch.tensor([0.0, -0.0, math.inf, math.nan]),)),
    OpCase("bessel-first-dynamic", FIRST, (X,), dynamic={0: {0: (1, 5)}}),
    OpCase("bessel-first-int", FIRST, (torch.arange(-9, 9),)),
    *(
        OpCase(f"bessel-{kind}-{name}", function, (torch.linspace(*ends, 60),))
        for kind, function in (("first", FIRST), ("second", SECOND), ("decaying", DECAYING))
        for name, ends in RANGES.items()
    ),
    OpCase("bessel-second-ends", SECOND, (torch.tensor([0.0, -1.0, math.inf, math.nan]),)),
    OpCase("bessel-decaying-ends", DECAYING, (torch.tensor([0.0, -1.0, math.nan]),)),
    OpCase("bessel-second-int", together(special.bessel_y0, special.modified_bessel_k1), (torch.arange(1, 9),)),
    OpCase("airy", special.airy_ai, (X,), unsupported="no Airy function"),
]
