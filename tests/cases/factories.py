"""Rows of torch2trt/converters/factories.py."""

from __future__ import annotations

import torch

from tests.cases import normal, together
from tests.harness import OpCase

X, INTS = normal(2, 6, 4), torch.arange(48).reshape(2, 6, 4)
FLAGS, BYTES = X > 0, INTS.to(torch.uint8)
BOTH = {0: {0: (1, 5), 1: (4, 12)}}

LIKE = together(
    lambda x: torch.zeros_like(x) + x,
    lambda x: torch.ones_like(x, dtype=torch.float32),
    lambda x: torch.full_like(x, 3),
    lambda x: torch.full_like(x, 2.5, dtype=torch.float32),
    lambda x: x.new_zeros(x.shape[1], 3),
    lambda x: x.new_ones(2) + x[0, 0, 0],
    lambda x: x.new_full((x.shape[0], 1), 1, dtype=torch.int32),
    lambda x: torch.empty_like(x).fill_(1),
    lambda x: x.clone().zero_(),
    lambda x: x.new_empty(3).fill_(x[0, 0, 1]),
    lambda x: torch.empty_like(x, dtype=torch.float32).copy_(x[:, :1]),
)
PLAIN = together(
    lambda x: torch.zeros(x.shape[0], 2, dtype=x.dtype) + x[:, 0, :2],
    lambda x: torch.ones(x.shape[:2], dtype=torch.bool),
    lambda x: torch.full((x.shape[1], 3), 0.5),
    lambda x: torch.empty(x.shape[0]).fill_(2),
    lambda x: torch.full((), x.shape[0]),
    lambda x: torch.scalar_tensor(x.shape[1], dtype=torch.float32),
    lambda x: torch.eye(x.shape[1]),
    lambda x: torch.eye(x.shape[0], 3, dtype=torch.int64),
)
RANGES = together(
    lambda x: torch.arange(x.shape[1]),
    lambda x: torch.arange(x.shape[1], dtype=torch.float32),
    lambda x: torch.arange(x.shape[1], dtype=torch.float16),
    lambda x: torch.arange(1, x.shape[1]),
    lambda x: torch.arange(-3, 2 * x.shape[1], 2, dtype=torch.int32),
    lambda x: torch.arange(x.shape[1], 0, -1),
    lambda x: torch.arange(x.shape[0], x.shape[0] + 4),
    lambda x: torch.arange(x.shape[1])[None] < x[:, 0, :1],
)
# Of integers torch counts in integers, and takes the number of steps from what was said.
PARTS = together(
    lambda x: torch.arange(2.7, x.shape[1], 1.5, dtype=torch.int64),
    lambda x: torch.arange(x.shape[1], 0, -0.5, dtype=torch.int32),
)

CASES = [
    OpCase("like", LIKE, (X,)),
    OpCase("like-half", LIKE, (X.half(),)),
    OpCase("like-int", LIKE, (INTS,)),
    OpCase("like-bool", together(torch.zeros_like, torch.ones_like, lambda x: x.new_ones(3)), (FLAGS,)),
    OpCase("like-bytes", together(torch.zeros_like, lambda x: torch.full_like(x, 200), torch.ones_like), (BYTES,)),
    OpCase("like-dynamic", LIKE, (X,), dynamic=BOTH),
    OpCase("like-dynamic-bytes", lambda x: torch.full_like(x, 200), (BYTES,), dynamic=BOTH),
    OpCase("plain", PLAIN, (X,)),
    OpCase("plain-dynamic", PLAIN, (X,), dynamic=BOTH),
    OpCase("full-large", lambda x: x + torch.full((64, 1, 96), 0.5)[:, :, :4], (X[:1],)),
    OpCase("ranges", RANGES, (X,)),
    OpCase("ranges-dynamic", RANGES, (X,), dynamic=BOTH),
    OpCase("ranges-in-parts", PARTS, (X,)),
    OpCase("ranges-in-parts-dynamic", PARTS, (X,), dynamic=BOTH, unsupported="made of numbers that are no integers"),
    OpCase("arange-float", lambda x: x + torch.arange(0, 2, 0.5), (X,)),
    OpCase("arange-large", lambda x: x[0, 0, 0] + torch.arange(5000), (X,)),
    OpCase("linspace", lambda x: x + torch.linspace(-1, 1, 4), (X,)),
    OpCase("linspace-large", lambda x: x[0, 0, 0] + torch.linspace(-1, 1, 5001), (X,)),
    OpCase("linspace-to-size", lambda x: torch.linspace(0, x.shape[0], 4), (X,), dynamic=BOTH),
    OpCase(
        "triangle-indices",
        lambda x: x[(slice(None), *torch.triu_indices(4, 4, 1))] + x[(slice(None), *torch.tril_indices(4, 4, -1))],
        (normal(2, 4, 4),),
    ),
]
