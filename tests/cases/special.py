"""Rows of torch2trt/converters/special.py."""

from __future__ import annotations

import math

import torch

from tests.cases import normal, together
from tests.harness import OpCase

special = torch.special
X, POSITIVE = normal(4, 50) * 4, normal(4, 50).abs() * 10 + 0.01
UNIT = torch.linspace(-1, 1, 201)
ENDS = torch.tensor([0.0, -0.0, -1.0, -2.0, -3.5, 1.0, 2.0, math.inf, math.nan])
# Relative to the largest of a row's results: each magnitude by itself.
GAMMA = {
    "near": torch.linspace(0.9, 2.1, 100),
    "small": torch.tensor([1e-30, 1e-5, 0.1, 0.5]),
    "middle": torch.linspace(2, 30, 200),
    "large": torch.tensor([1e3, 1e5, 1e30]),
    "negative": torch.tensor([-0.5, -1.3, -2.7, -10.1, -0.01]),
}

CASES = [
    OpCase("erfinv", together(torch.erfinv, lambda x: special.ndtri((x + 1) / 2)), (UNIT,)),
    OpCase("ndtri-tail", special.ndtri, (torch.tensor([1e-30, 1e-10, 1e-5, 0.01, 0.999]),)),
    OpCase("erfinv-beyond", torch.erfinv, (torch.tensor([1.5, -2.0, math.nan, 1.0, -1.0, 0.0]),)),
    # Relative to the largest of a row's results: each magnitude by itself.
    *(
        OpCase(f"erfc-from-{start}", torch.erfc, (torch.linspace(start, end, 50),))
        for start, end in ((-11, 0.5), (0.4, 0.6), (0.5, 1.5), (1.5, 2), (2, 3), (4, 4.5), (5, 5.2), (8, 8.05))
    ),
    OpCase("erfc-ends", torch.erfc, (torch.tensor([-math.inf, math.inf, math.nan, 0.0, 13.0]),)),
    OpCase("erfc-half", torch.erfc, (torch.linspace(2, 3.5, 50).half(),)),
    OpCase("erfcx", special.erfcx, (normal(4, 50).abs() * 5,)),
    OpCase("erfcx-negative", special.erfcx, (-normal(4, 50).abs(),)),
    OpCase("erfcx-large", special.erfcx, (torch.tensor([50.0, 1e10]),)),
    OpCase("log_ndtr", together(special.log_ndtr, special.ndtr), (X,)),
    *(OpCase(f"lgamma-{name}", torch.lgamma, (values,)) for name, values in GAMMA.items()),
    *(OpCase(f"digamma-{name}", torch.digamma, (values,)) for name, values in GAMMA.items() if name != "near"),
    OpCase("gamma-ends", together(torch.lgamma, torch.digamma), (ENDS,)),
    OpCase("gamma-half", together(torch.lgamma, torch.digamma), (POSITIVE.half(),)),
    OpCase("gamma-int", together(torch.lgamma, torch.digamma), (torch.arange(1, 9),)),
    OpCase("ldexp", torch.ldexp, (X, torch.arange(50) - 25)),
    OpCase("ldexp-half", torch.ldexp, (X.half(), torch.arange(50) - 25)),
    OpCase("frexp", torch.frexp, (X * 10.0 ** torch.arange(-25, 25),)),
    OpCase("frexp-powers", torch.frexp, (2.0 ** torch.arange(-120, 120),)),
    OpCase("frexp-ends", lambda x: torch.frexp(x).mantissa, (ENDS,)),
]
