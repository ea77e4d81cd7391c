"""Rows of torch2trt/converters/ranking.py."""

from __future__ import annotations

import torch

from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 3, 5)
# No two equal: which of them comes first is nobody's promise.
INTS = torch.randperm(30, generator=torch.Generator().manual_seed(0)).reshape(2, 3, 5) - 9
SCALAR = torch.tensor(3.0)
BATCH, BOTH = {0: {0: (1, 4)}}, {0: {0: (1, 4), 2: (3, 5)}}

ARGUMENTS = together(
    torch.argmax,
    torch.argmin,
    lambda x: x.argmax(keepdim=True),
    lambda x: x.argmax(-1),
    lambda x: x.argmin(1, keepdim=True),
    lambda x: x.max(0),
    lambda x: x.min(-1, keepdim=True),
    lambda x: x.max(2).values,
    lambda x: x.min(1).indices,
)
RANKS = together(lambda x: x.topk(2), lambda x: x.topk(2, 1, largest=False))
ARGUMENTS_OF_TIES = together(
    *(lambda x, dim=dim, f=f: f(x, dim) for f in (torch.argmax, torch.argmin) for dim in (0, 1, None)),
    lambda x: x.max(1).indices,
    lambda x: x.min(0, keepdim=True).indices,
)
TIES = torch.tensor([[3.0, 1.0, 3.0, 1.0], [torch.nan, 5.0, torch.nan, 5.0], [2.0, 2.0, torch.inf, torch.inf]])

CASES = [
    OpCase("arguments", ARGUMENTS, (X,)),
    OpCase("arguments-int64", ARGUMENTS, (INTS,)),
    OpCase("arguments-int32", ARGUMENTS, (INTS.to(torch.int32),)),
    OpCase("arguments-half", ARGUMENTS, (INTS.half(),)),
    OpCase("arguments-bfloat16", ARGUMENTS, (INTS.bfloat16(),)),
    OpCase("arguments-dynamic", ARGUMENTS, (X,), dynamic=BOTH),
    OpCase("arguments-bytes", ARGUMENTS, ((INTS + 9).to(torch.uint8),)),
    OpCase("arguments-scalar", together(torch.argmax, lambda x: x.argmin(0), lambda x: x.max(0)), (SCALAR,)),
    OpCase("argmin-nan", lambda x: x.argmin(-1), (X.masked_fill(X > 1, torch.nan),)),
    OpCase("arguments-ties", ARGUMENTS_OF_TIES, (TIES,)),
    OpCase("arguments-ties-int", ARGUMENTS_OF_TIES, (TIES.nan_to_num(7, 9).long(),)),
    OpCase("extremes-ties-bool", lambda x: (x.max(1), x.min(0)), (TIES > 2,)),
    OpCase("argmax-vector", torch.argmax, (X[0, 0],)),
    OpCase("max-outer-of-six", lambda x: x.max(1), (normal(2, 3, 2, 2, 2, 2),)),
    OpCase("ranks", RANKS, (X,)),
    OpCase("ranks-int64", RANKS, (INTS,)),
    OpCase("ranks-half", RANKS, (INTS.half(),)),
    OpCase("ranks-dynamic-batch", lambda x: x.topk(2), (X,), dynamic=BATCH),
    OpCase("topk-scalar", lambda x: x.topk(1), (SCALAR,)),
    OpCase("topk-of-dynamic", lambda x: x.topk(3), (X,), dynamic=BOTH),
    OpCase("topk-dynamic-count", lambda x: x.topk(x.shape[2] - 2), (X,), dynamic=BOTH),
    OpCase("topk-too-many", lambda x: x.topk(4000), (normal(2, 4001),), unsupported="3840 at most"),
]
