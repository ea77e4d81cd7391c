"""Rows of torch2trt/converters/folding.py, and of what cuts the windows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 3, 7, 6)
SPECIAL = torch.tensor([math.inf, 1.0, -math.inf, math.nan, 2.0, 3.0]).repeat(7, 1).expand(2, 3, 7, 6).clone()

ROUND_TRIPS = together(
    lambda x: F.fold(F.unfold(x, 3), (7, 6), 3),
    lambda x: F.fold(F.unfold(x, (2, 3), padding=1), (7, 6), (2, 3), padding=1),
    lambda x: F.fold(F.unfold(x, 2, stride=(1, 3)), (7, 6), 2, stride=(1, 3)),
    lambda x: F.fold(F.unfold(x, 2, dilation=(3, 2), padding=(0, 1)), (7, 6), 2, dilation=(3, 2), padding=(0, 1)),
    lambda x: F.fold(F.unfold(x, 2, stride=3, dilation=2), (7, 6), 2, stride=3, dilation=2),
    lambda x: F.fold(x.reshape(x.shape[0], 9, 14).transpose(1, 2)[:, :12], (6, 6), 2, stride=2),
    lambda x: F.fold(x[0].reshape(18, 7)[:, :6], (3, 3), (2, 3), padding=(0, 1)),
)
CUTS = together(
    lambda x: F.unfold(x, 3),
    lambda x: F.unfold(x, (2, 3), padding=(1, 0), stride=2),
    lambda x: F.unfold(x, 2, dilation=(2, 3)),
)

CASES = [
    OpCase("fold", ROUND_TRIPS, (X,)),
    OpCase("fold-half", ROUND_TRIPS, (X.half(),)),
    OpCase("fold-special", ROUND_TRIPS, (SPECIAL,)),
    OpCase("fold-dynamic", ROUND_TRIPS, (X,), dynamic={0: {0: (1, 5)}}),
    OpCase("unfold", CUTS, (X,)),
    OpCase("unfold-dynamic", CUTS, (X,), dynamic={0: {0: (1, 5)}}),
    OpCase("unfold-dynamic-image", CUTS, (X,), dynamic={0: {2: (5, 9), 3: (5, 8)}}),
    OpCase(
        "fold-dynamic-image",
        lambda x: F.fold(F.unfold(x, 3), x.shape[2:], 3),
        (X,),
        dynamic={0: {2: (5, 9)}},
        unsupported="image of dynamic size",
    ),
]
