"""Rows of torch2trt/converters/experts.py."""

from __future__ import annotations

import torch

from tests.cases import normal
from tests.harness import OpCase


def experts(x: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float64:
        return torch._grouped_mm(x, matrices, offs=ends)
    result, first = x.new_zeros(x.shape[0], matrices.shape[2]), 0
    for last, matrix in zip(ends.tolist(), matrices, strict=True):
        result[first:last], first = x[first:last] @ matrix, last
    return result


def thirds(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    return experts(x, matrices, (torch.arange(1, 4) * x.shape[0] // 3).int())


X, MATRICES, ENDS = normal(10, 16), normal(3, 16, 8), torch.tensor([2, 2, 10], dtype=torch.int32)

CASES = [
    OpCase("experts", experts, (X, MATRICES, ENDS)),
    OpCase("experts-constant", experts, (X, MATRICES, ENDS), weights=(1,)),
    OpCase("experts-half", experts, (X.half(), MATRICES.half(), ENDS)),
    OpCase("experts-dynamic", thirds, (X, MATRICES), weights=(1,), dynamic={0: {0: (3, 20)}}),
    OpCase(
        "experts-many",
        experts,
        (X, normal(17, 16, 8), torch.tensor([0] * 16 + [10], dtype=torch.int32)),
        unsupported="17 experts",
    ),
]

try:
    torch._grouped_mm(X, MATRICES, offs=ENDS)
except RuntimeError:
    # On the CPU torch 2.11 computes them in bfloat16 alone.
    CASES = []
