"""Rows of torch2trt/converters/uniqueness.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests import torch_can
from tests.cases import normal
from tests.harness import OpCase

FEW = torch.tensor([[2, 2, -1, 5], [5, 5, 5, 2], [-1, 7, 7, 7]])
HOLES = torch.tensor([3.0, torch.nan, torch.nan, -torch.inf, 3.0, 3.0, torch.inf, torch.inf, 0.0, -0.0, 3.0])
COORDINATES = torch.tensor([[1, 0, 2], [1, 0, 2], [0, 9, 9], [1, 0, -2], [0, 9, 9], [0, 9, 9], [1, 0, 2]])
MANY = torch.randint(0, 900, (5000,), generator=torch.Generator().manual_seed(0))

ALL = {"return_inverse": True, "return_counts": True}


def single(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each of the results alone."""
    return (
        *(torch.unique(x), torch.unique(x, sorted=False), *torch.unique(x, return_inverse=True)),
        *(*torch.unique(x, return_counts=True), torch.unique_consecutive(x)),
        *torch.unique_consecutive(x, return_inverse=True),
        *torch.unique_consecutive(x, return_counts=True),
    )


def both(x: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, ...]:
    return *torch.unique(x, dim=dim, **ALL), *torch.unique_consecutive(x, dim=dim, **ALL)


def voxels(points: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The mean of the points [n, 3] in every cell of a grid that has one."""
    cells, cell, counts = torch.unique((points * 2).floor().long(), dim=0, **ALL)
    sums = points.new_zeros(cells.shape[0], 3).index_add(0, cell, points)
    return cells, sums / counts[:, None]


def of_selected(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return both(x[x > 0])


def unique(name: str, function: Callable[..., Any], *inputs: torch.Tensor, **options: Any) -> OpCase:
    return OpCase(name, function, inputs, rtx="has a runner", needs=torch_can.trace_counts, **options)


CASES = [
    unique("unique", both, FEW),
    unique("unique-single", single, FEW),
    unique("unique-nan", both, HOLES),
    unique("unique-float16", both, HOLES.half()),
    unique("unique-bool", both, FEW > 2),
    unique("unique-uint8", both, torch.tensor([200, 200, 3, 255, 3, 255], dtype=torch.uint8)),
    unique("unique-int64", both, torch.tensor([2**40, -1, 2**40, 2**40 + 1])),
    unique("unique-one", both, torch.tensor([[4.0]])),
    unique("unique-scalar", both, torch.tensor(4.0)),
    unique("unique-all-the-same", both, torch.ones(3, 4)),
    unique("unique-many", both, MANY),
    unique("unique-dynamic", both, FEW, dynamic={0: {0: (1, 9)}}),
    unique("unique-rows", partial(both, dim=0), COORDINATES),
    unique("unique-columns", partial(both, dim=1), FEW[:, [0, 0, 2, 1]]),
    unique("unique-last-dim", partial(torch.unique, dim=-1, **ALL), FEW[:, [0, 0, 2, 1]]),
    unique("unique-planes", partial(both, dim=1), normal(2, 3, 4)[:, [0, 1, 1, 2, 0]].sign()),
    unique("unique-rows-bool", partial(both, dim=0), COORDINATES > 0),
    unique("unique-rows-one", partial(both, dim=0), COORDINATES[:1]),
    unique("unique-rows-dynamic", partial(both, dim=0), COORDINATES, dynamic={0: {0: (1, 9)}}),
    unique("unique-rows-many", partial(torch.unique, dim=0, **ALL), MANY.reshape(2500, 2) // 100),
    unique("unique-voxels", voxels, normal(40, 3)),
    unique("unique-of-selected", of_selected, normal(30).round()),
    unique("unique-of-none", of_selected, -torch.ones(4)),
]
