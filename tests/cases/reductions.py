"""Rows of torch2trt/converters/reductions.py."""

from __future__ import annotations

import math

import torch

from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 3, 4)
INTS = torch.arange(-12, 12).reshape(2, 3, 4)
NARROW_INTS, FLAGS = INTS.to(torch.int32), X > 0
BYTES = torch.arange(200, 224, dtype=torch.uint8).reshape(2, 3, 4)
SCALAR = torch.tensor(-1.5)
# Sums of these exceed what 16 bits can hold, or keep.
LONG = (normal(2, 4096).abs() * 30).half()
BATCH, BOTH = {0: {0: (1, 5)}}, {0: {0: (1, 5), 2: (2, 6)}}

SUMS = together(
    torch.sum,
    torch.prod,
    lambda x: x.sum(1),
    lambda x: x.sum((0, -1), keepdim=True),
    lambda x: x.sum([]),
    lambda x: x.sum(2, dtype=torch.float32),
    lambda x: x.mean(-1, dtype=torch.float32),
    lambda x: x.prod(1),
    lambda x: x.prod(-1, keepdim=True),
    lambda x: x.cumsum(-1),
    lambda x: x.cumsum(0),
    lambda x: x.cumsum(1, dtype=torch.float32),
    torch.count_nonzero,
    lambda x: x.count_nonzero((0, 1)),
)
MEANS = together(torch.mean, lambda x: x.mean(1), lambda x: x.mean((1, 2), keepdim=True))
EXTREMES = together(
    torch.max,
    torch.min,
    torch.amax,
    lambda x: x.amax(1),
    lambda x: x.amin((0, 2), keepdim=True),
    lambda x: torch.aminmax(x, dim=1),
    torch.aminmax,
)
FAR = together(
    lambda x: x.amax(-1),
    lambda x: x.amin(-1),
    lambda x: x.max(1, keepdim=True).values,
    lambda x: torch.aminmax(x, dim=0),
)
ENDS = torch.stack([torch.full((4,), -math.inf), torch.full((4,), math.inf), torch.tensor([-math.inf, 1, 2, math.inf])])
LOGICAL = together(
    torch.any,
    torch.all,
    lambda x: x.any(1),
    lambda x: x.all(-1, keepdim=True),
    lambda x: x.any((0, 1)),
    lambda x: x.all((1, 2), keepdim=True),
)
MOMENTS = together(
    torch.var,
    lambda x: x.std(unbiased=False),
    lambda x: x.var(1),
    lambda x: x.std((0, 2), keepdim=True),
    lambda x: x.var(-1, correction=2),
    lambda x: torch.var_mean(x, 1),
    torch.var_mean,
)
NORMS = together(
    torch.linalg.vector_norm,
    *(
        lambda x, ord=ord: torch.linalg.vector_norm(x, ord, dim=1, keepdim=ord == 0)
        for ord in (1, 2, 3, 0.5, 0, math.inf, -math.inf)
    ),
    lambda x: x.norm(),
    lambda x: x.norm(1, dim=(0, 1)),
    lambda x: torch.nn.functional.normalize(x, dim=-1),
)

CASES = [
    OpCase("sums", SUMS, (X,)),
    OpCase("sums-int64", SUMS, (INTS + 14,)),
    OpCase("sums-int32", SUMS, (NARROW_INTS,)),
    OpCase("sums-bool", SUMS, (FLAGS,)),
    OpCase("sums-bytes", SUMS, (BYTES,)),
    OpCase("sums-half", SUMS, (X.half(),)),
    OpCase("sums-bfloat16", SUMS, (X.bfloat16(),)),
    OpCase("sums-dynamic", SUMS, (X,), dynamic=BOTH),
    OpCase("sum-scalar", together(torch.sum, lambda x: x.sum(0), lambda x: x.cumsum(0), torch.prod), (SCALAR,)),
    OpCase("sum-long-half", together(lambda x: x.sum(1, dtype=torch.float32), lambda x: x.mean(1)), (LONG,)),
    OpCase("sum-int-as-half", lambda x: x.sum(1, dtype=torch.float16), (INTS,)),
    OpCase("means", MEANS, (X,)),
    OpCase("means-half", MEANS, (X.half(),)),
    OpCase("means-dynamic", MEANS, (X,), dynamic=BOTH),
    OpCase("extremes", EXTREMES, (X,)),
    OpCase("extremes-int64", EXTREMES, (INTS,)),
    OpCase("extremes-infinite", FAR, (ENDS,)),
    OpCase("extremes-infinite-half", FAR, (ENDS.half(),)),
    OpCase("extremes-bool", together(torch.max, lambda x: x.amin(1), lambda x: x.amax((0, 1))), (FLAGS,)),
    OpCase("extremes-half-dynamic", EXTREMES, (X.half(),), dynamic=BOTH),
    OpCase("extremes-bytes", EXTREMES, (BYTES,)),
    OpCase("extremes-scalar", together(torch.max, torch.amin), (SCALAR,)),
    OpCase("logical-bool", LOGICAL, (FLAGS,)),
    OpCase("logical-float", LOGICAL, (X.relu(),)),
    OpCase("logical-fractions", LOGICAL, (X * 0.01,)),
    OpCase("logical-int", LOGICAL, (INTS,)),
    OpCase("logical-bytes", LOGICAL, (BYTES,)),
    OpCase("logical-dynamic", LOGICAL, (FLAGS,), dynamic=BOTH),
    OpCase("moments", MOMENTS, (X,)),
    OpCase("moments-half", MOMENTS, ((X * 0.5 + 20).half(),)),
    OpCase("moments-dynamic", MOMENTS, (X,), dynamic={0: {0: (2, 5), 2: (3, 6)}}),
    OpCase("std_mean", lambda x: torch.std_mean(x, (1, 2), keepdim=True), (X,)),
    OpCase("norms", NORMS, (X,)),
    OpCase("norms-half", NORMS, (X.half(),)),
    OpCase("norms-large-half", torch.linalg.vector_norm, (X.half() * 1000,)),
    OpCase("norms-dynamic", NORMS, (X,), dynamic=BATCH),
    OpCase("logsumexp", together(lambda x: x.logsumexp(1), lambda x: x.logsumexp((0, 2), keepdim=True)), (X * 20,)),
]
