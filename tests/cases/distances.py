"""Rows of torch2trt/converters/distances.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase

X, Y = normal(2, 4, 3), normal(2, 5, 3, seed=1)
POWERS = (0.0, 0.5, 1.0, 2.0, 3.0, math.inf)

CASES = [
    OpCase("cdist", together(*(lambda x, y, p=p: torch.cdist(x, y, p) for p in POWERS)), (X, Y)),
    OpCase("cdist-broadcast", torch.cdist, (X[:, None], Y[0])),
    OpCase("cdist-itself", lambda x: torch.cdist(x, x), (normal(40, 60) + 10,)),
    OpCase("cdist-dynamic", torch.cdist, (X, Y), dynamic={0: {1: (1, 6)}, 1: {1: (2, 7)}}),
    OpCase(
        "cdist-by-products",
        lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"),
        (X, Y),
    ),
    OpCase("pdist", together(*(lambda x, p=p: F.pdist(x, p) for p in POWERS)), (X[0],)),
    OpCase("pdist-one-row", F.pdist, (X[0, :1],)),
    OpCase("pdist-dynamic", F.pdist, (X[0],), dynamic={0: {0: (2, 5)}}, unsupported="dynamic number of rows"),
    OpCase("dist", together(*(lambda x, y, p=p: torch.dist(x, y, p) for p in POWERS)), (X, Y[:, :4])),
    OpCase("pairwise_distance", F.pairwise_distance, (X, Y[:, :4])),
]
