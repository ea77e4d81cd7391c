"""Rows of torch2trt/converters/running.py."""

from __future__ import annotations

import math

import torch

from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 3, 7)
INTS = torch.arange(-5, 37).remainder(7).reshape(2, 3, 7) - 2
TIES = (normal(3, 40) * 2).round()
NANS = TIES.masked_fill(TIES == 3, math.nan).masked_fill(TIES == -2, -math.inf)
SCALAR = torch.tensor(-1.5)
BATCH, LAST = {0: {0: (1, 5)}}, {0: {2: (2, 9)}}

PRODUCTS = together(
    lambda x: x.cumprod(-1),
    lambda x: x.cumprod(0),
    lambda x: x.cumprod(1, dtype=torch.float32),
)
EXTREMES = together(
    lambda x: x.cummax(-1),
    lambda x: x.cummin(-1),
    lambda x: x.cummax(0),
    lambda x: x.cummin(0),
)
LOGARITHMS = together(lambda x: x.logcumsumexp(-1), lambda x: x.logcumsumexp(0))

CASES = [
    OpCase("products", PRODUCTS, (X,)),
    OpCase("products-int", PRODUCTS, (INTS,)),
    OpCase("products-bool", PRODUCTS, (INTS > -1,)),
    OpCase("products-half", PRODUCTS, (X.half(),)),
    OpCase("products-dynamic", PRODUCTS, (X,), dynamic={0: {0: (1, 5), 2: (2, 9)}}),
    OpCase("cumulative-extremes", EXTREMES, (X,)),
    OpCase("cumulative-extremes-ties", EXTREMES, (TIES,)),
    OpCase("cumulative-extremes-nan", EXTREMES, (NANS,)),
    OpCase("cumulative-extremes-int", EXTREMES, (INTS,)),
    OpCase("cumulative-extremes-bool", EXTREMES, (INTS > 0,)),
    OpCase("cumulative-extremes-half", EXTREMES, (TIES.half(),)),
    OpCase("cummax-dynamic-batch", lambda x: x.cummax(2), (X,), dynamic=BATCH),
    OpCase("logcumsumexp", LOGARITHMS, (X * 50,)),
    OpCase("logcumsumexp-infinite", LOGARITHMS, (torch.tensor([[-math.inf, -math.inf, 1.0, 0.0, math.inf]]),)),
    OpCase("logcumsumexp-half", LOGARITHMS, (X.half(),)),
    OpCase("logcumsumexp-long", lambda x: x.logcumsumexp(0), (normal(1000),)),
    OpCase("running-vander", lambda x: torch.linalg.vander(x, N=5), (X,)),
    OpCase("running-scalar", together(*(lambda x, f=f: f(x, 0) for f in (torch.cumprod, torch.cummax))), (SCALAR,)),
    OpCase("cummax-dynamic", lambda x: x.cummax(2), (X,), dynamic=LAST, unsupported="along a dynamic dimension"),
]
