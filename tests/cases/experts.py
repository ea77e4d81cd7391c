"""Rows of torch2trt/converters/experts.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests import torch_can
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


def row(name: str, function: Callable[..., Any], *inputs: torch.Tensor, **options: Any) -> OpCase:
    return OpCase(name, function, inputs, needs=torch_can.multiply_groups, **options)


CASES = [
    row("experts", experts, X, MATRICES, ENDS),
    row("experts-constant", experts, X, MATRICES, ENDS, weights=(1,)),
    row("experts-half", experts, X.half(), MATRICES.half(), ENDS),
    row("experts-dynamic", thirds, X, MATRICES, weights=(1,), dynamic={0: {0: (3, 20)}}),
    row(
        *("experts-many", experts, X, normal(17, 16, 8), torch.tensor([0] * 16 + [10], dtype=torch.int32)),
        unsupported="17 experts",
    ),
]
