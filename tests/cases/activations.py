"""Rows of torch2trt/converters/activations.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 4, 5) * 3
# Far enough for exponentials to overflow, and zero.
FAR = torch.tensor([[-200.0, -30.0, -1e-3, 0.0], [1e-3, 19.5, 30.0, 200.0]])
SLOPES = normal(4, seed=1)

NAMED: dict[str, Callable[..., Any]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "gelu": together(F.gelu, partial(F.gelu, approximate="tanh")),
    "relu": together(F.relu, F.relu6),
    "leaky_relu": together(F.leaky_relu, partial(F.leaky_relu, negative_slope=0.3)),
    "hardtanh": together(F.hardtanh, partial(F.hardtanh, min_val=-2.0, max_val=0.5)),
    "elu": together(F.elu, partial(F.elu, alpha=0.4)),
    "celu": together(F.celu, partial(F.celu, alpha=0.4)),
    "selu": F.selu,
    "softplus": together(F.softplus, partial(F.softplus, beta=2.5), partial(F.softplus, beta=2, threshold=1)),
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "others": together(
        *(F.tanhshrink, F.softsign, F.hardshrink, F.softshrink),
        partial(F.threshold, threshold=0.1, value=20.0),
        partial(F.rrelu, lower=0.1, upper=0.3),
    ),
}
ALL = together(*NAMED.values())


def at_all(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of several tensors."""
    return lambda *tensors: tuple(function(tensor) for tensor in tensors)


CLAMPS = together(
    lambda x: torch.clamp(x, -1, 2),
    lambda x: torch.clamp(x, min=-1),
    lambda x: torch.clamp(x, max=2),
    lambda x: torch.clamp(x, 2, 1),
    lambda x: torch.clamp(x, -1.5, math.inf),
    lambda x: torch.clamp_min(x, 0),
    lambda x: torch.clamp_max(x, 1.5),
)
WHOLE = torch.arange(-6, 6).reshape(3, 4)

CASES = [
    *(OpCase(name, at_all(function), (X, FAR)) for name, function in NAMED.items()),
    *(OpCase(f"activations-{str(dtype)[6:]}", ALL, (X.to(dtype),)) for dtype in (torch.float16, torch.bfloat16)),
    OpCase("hardtanh-integers", together(F.hardtanh, lambda x: F.hardtanh(x, -2.5, 3.7)), (X.long() * 2,)),
    OpCase("activations-dynamic", ALL, (X,), dynamic={0: {0: (1, 3), 2: (2, 7)}}),
    # Not together with GELU: TensorRT-RTX 1.7 crashes where two of them share a scalar.
    *(OpCase(f"{name}-scalar", NAMED[name], (X[0, 0, 0],)) for name in ("relu", "elu", "softplus")),
    OpCase("gelu-scalar", F.gelu, (X[0, 0, 0],)),
    # As small as they are, these differ from zero.
    OpCase("activations-vanishing", together(F.softplus, F.logsigmoid, F.mish), (-normal(8).abs() - 9,)),
    OpCase("glu", F.glu, (X, 1)),
    OpCase("relu-integers", at_all(F.relu), (WHOLE, WHOLE.int())),
    OpCase("clamp", CLAMPS, (X,)),
    OpCase("clamp-integers", CLAMPS, (WHOLE,)),
    OpCase("clamp-float16", CLAMPS, (X.half(),)),
    OpCase("clamp-tensors", torch.clamp, (X, normal(5) - 1, normal(4, 1) + 1)),
    OpCase("clamp-tensor-min", lambda x, low: torch.clamp(x, min=low), (X, normal(5))),
    OpCase("prelu", F.prelu, (X, SLOPES), weights=(1,)),
    OpCase("prelu-one-slope", F.prelu, (X, SLOPES[:1]), weights=(1,)),
    OpCase("prelu-vector", F.prelu, (X[0, 0], SLOPES[:1]), weights=(1,)),
    OpCase("prelu-scalar", F.prelu, (X[0, 0, 0], SLOPES[:1]), weights=(1,)),
    OpCase("prelu-slopes-as-input", F.prelu, (normal(2, 4, 3, 3), SLOPES)),
    OpCase("prelu-matrix", F.prelu, (normal(3, 4), SLOPES), weights=(1,), dynamic={0: {0: (1, 5)}}),
    *(
        OpCase(f"prelu-{str(dtype)[6:]}", F.prelu, (X.to(dtype), SLOPES.to(dtype)), weights=(1,))
        for dtype in (torch.float16, torch.bfloat16)
    ),
]
