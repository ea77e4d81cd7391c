"""Rows of torch2trt/converters/softmax.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.cases import normal, together
from tests.harness import OpCase

aten = torch.ops.aten
X = normal(2, 3, 5) * 4
# Exponentials of these overflow, and vanish.
FAR = torch.tensor([[200.0, 100.0, -300.0], [-200.0, -201.0, -500.0]])
INFINITE = torch.tensor([[1.0, -math.inf, 2.0], [-math.inf] * 3, [math.inf, 1.0, 2.0]])


def along(function: Callable[..., torch.Tensor], *dims: int) -> Callable[..., Any]:
    """One dimension for each tensor."""
    return lambda *tensors: tuple(function(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True))


CASES = [
    OpCase(
        "softmax-of-nothing", together(*(partial(f, dim=1) for f in (torch.softmax, torch.log_softmax))), (X[:, :0],)
    ),
    *(
        OpCase(name, along(function, -1, 0, 1, 1, 0, 0), (X, X, FAR, INFINITE[:1], X[0, 0], X[0, 0, 0]))
        for name, function in {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.items()
    ),
    OpCase("softmax-dynamic", torch.softmax, (X, 1), dynamic={0: {0: (1, 4), 1: (2, 9), 2: (1, 6)}}),
    OpCase("softmax-float16", torch.softmax, (X.half(), -1)),
    OpCase("softmax-bfloat16", torch.softmax, (X.bfloat16(), -1)),
    OpCase("softmax-from-float16", torch.softmax, (X.half(), -1), {"dtype": torch.float32}),
    OpCase("softmax-to-float16", torch.softmax, (X, -1), {"dtype": torch.float16}),
    OpCase("softmax-of-integers", torch.softmax, (torch.arange(6).reshape(2, 3), -1), {"dtype": torch.float32}),
    OpCase("_softmax", together(aten._softmax.default, aten._log_softmax.default), (X, 1, False)),
    OpCase("log_softmax-dynamic", torch.log_softmax, (X, 1), dynamic={0: {1: (2, 9)}}),
    OpCase("log_softmax-float16", torch.log_softmax, (X.half(), -1)),
    OpCase("log_softmax-from-bfloat16", torch.log_softmax, (X.bfloat16(), 1), {"dtype": torch.float32}),
    OpCase(
        "logsumexp-far-and-infinite",
        along(torch.logsumexp, -1, 1, 1, 1, 0, 0),
        (X, FAR, INFINITE, torch.arange(6).reshape(2, 3), X[0, 0], X[0, 0, 0]),
    ),
    OpCase("logsumexp-dims", torch.logsumexp, (X, (0, 2), True)),
    OpCase("logsumexp-dynamic", torch.logsumexp, (X, (1,)), dynamic={0: {0: (1, 4), 1: (2, 9)}}),
    OpCase("logsumexp-float16", torch.logsumexp, (X.half(), 1)),
]
