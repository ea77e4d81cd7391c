"""Rows of torch2trt/converters/matrix_exponential.py."""

from __future__ import annotations

import torch

from tests.cases import normal
from tests.harness import OpCase

ROTATION = torch.tensor([[0.0, -100.0], [100.0, 0.0]])
NILPOTENT = torch.triu(normal(4, 4), 1) * 10
# Of different norms, so that each is squared another number of times.
SCALED = normal(5, 3, 3) * torch.tensor([0.0, 1e-4, 1.0, 20.0, 0.3]).reshape(5, 1, 1)
DECAY = -torch.diag(torch.tensor([1e5, 3.0, 0.0, 80.0]))


def each(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.matrix_exp(x), *torch.matrix_exp(x).flatten(0, -3).unbind(0)


CASES = [
    OpCase("matrix_exp", torch.linalg.matrix_exp, (normal(2, 4, 4),)),
    OpCase("matrix_exp-each", each, (SCALED,), tolerance=3),
    *(OpCase(f"matrix_exp-{size}", torch.matrix_exp, (normal(2, size, size) / size**0.5,)) for size in (1, 2, 16, 64)),
    OpCase("matrix_exp-ranks", each, (normal(2, 1, 3, 2, 2),)),
    OpCase("matrix_exp-rotation", torch.matrix_exp, (ROTATION,), tolerance=5),
    OpCase("matrix_exp-nilpotent", torch.matrix_exp, (NILPOTENT,), tolerance=3),
    OpCase("matrix_exp-decay", torch.matrix_exp, (DECAY,)),
    OpCase("matrix_exp-zero", torch.matrix_exp, (torch.zeros(3, 3),)),
    OpCase("matrix_exp-infinite", torch.matrix_exp, (torch.eye(2) * torch.inf,)),
    OpCase("matrix_exp-dynamic", torch.matrix_exp, (normal(2, 4, 4),), dynamic={0: {0: (1, 5)}}),
    OpCase("matrix_exp-large", torch.matrix_exp, (normal(65, 65),), unsupported="a matrix of 65 rows"),
    OpCase("matrix_exp-many", torch.matrix_exp, (torch.zeros(300, 64, 64),), unsupported="products of 78643200"),
    OpCase(
        "matrix_exp-size-dynamic",
        lambda x: torch.matrix_exp(x @ x.mT),
        (normal(3, 2),),
        dynamic={0: {0: (2, 5)}},
        unsupported="a dynamic number of rows",
    ),
]
