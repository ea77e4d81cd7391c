"""Rows of torch2trt/converters/selection.py, and of what goes on with what is selected."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.cases import normal
from tests.harness import OpCase

X = normal(4, 5, seed=2)
NONE = -X.abs()
HOLES = torch.tensor([[0.0, -1.0, torch.nan], [torch.inf, -0.0, 2.0]])


def found(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.nonzero(x), *torch.nonzero(x, as_tuple=True), torch.argwhere(x > 0), *torch.where(x < 0)


def masked(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rows, columns = x[:, 0] > 0, x[0] > 0
    return (
        *(x[x > 0], torch.masked_select(y, x > 0), torch.masked_select(x, columns), x[rows], x[:, columns]),
        *(x[rows, 1:], x[rows, torch.tensor([2])], x[rows][:, [3, 1]], x[None, x > 0]),
    )


def selected(use: Callable[..., Any]) -> Callable[[torch.Tensor], Any]:
    """What is selected, in a layer that models use it in."""

    def select(x: torch.Tensor) -> Any:
        rows = x[:, 0] > 0
        return use(x, x[rows], torch.nonzero(rows).squeeze(1))

    return select


USES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x, picked, places: picked.softmax(-1),
    "sum": lambda x, picked, places: picked.sum(0),
    "linear": lambda x, picked, places: picked @ x.T,
    "gram": lambda x, picked, places: picked.T @ picked,
    "counted": lambda x, picked, places: picked * picked.shape[0],
    "reshaped": lambda x, picked, places: picked.reshape(-1, 5, 1).transpose(0, 1),
    "expanded": lambda x, picked, places: picked[:, None].expand(-1, 2, -1),
    "arange": lambda x, picked, places: torch.arange(picked.shape[0]) + places,
    "zeros": lambda x, picked, places: picked.new_zeros(2 * picked.shape[0] + 1),
    "cumsum": lambda x, picked, places: picked.cumsum(0),
    "copied": lambda x, picked, places: torch.zeros_like(x).index_copy(0, places, picked),
    "added": lambda x, picked, places: torch.zeros_like(x).index_add(0, places, picked),
}
REFUSED_USES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "argmax": lambda x, picked, places: picked.argmax(1),
    "largest": lambda x, picked, places: picked.max(1).values,
    "joined": lambda x, picked, places: torch.cat([picked, x, x[x[:, 1] > 0]]),
}


def used(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is selected, in many layers of one engine."""
    rows = x[:, 0] > 0
    picked, places = x[rows], torch.nonzero(rows).squeeze(1)
    return tuple(use(x, picked, places) for use in USES.values())


def written(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rows, copied = x[:, 0] > 0, x.clone()
    copied[rows] = 2 * y[rows]
    return copied, x.masked_scatter(x > 0, y[y > 0])


def experts(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Every row goes to the expert that it scores highest with."""
    gates = (x @ weight).softmax(-1)
    best, result = gates.argmax(-1), torch.zeros_like(x)
    for expert in range(gates.shape[-1]):
        (rows,) = torch.where(best == expert)
        result.index_add_(0, rows, (expert + 1) * x[rows] * gates[rows, expert, None])
    return result


def selecting(name: str, function: Callable[..., Any], *inputs: torch.Tensor, **options: Any) -> OpCase:
    return OpCase(name, function, inputs, rtx="has a runner", **options)


CASES = [
    selecting("nonzero", found, X),
    selecting("nonzero-none", found, torch.zeros(2, 3)),
    selecting("nonzero-nan", torch.nonzero, HOLES),
    selecting("nonzero-bool", torch.nonzero, HOLES > 0),
    selecting("nonzero-int64", torch.nonzero, torch.tensor([0, 2**40, -1])),
    selecting("nonzero-uint8", torch.nonzero, torch.tensor([[0, 255], [1, 0]], dtype=torch.uint8)),
    selecting("nonzero-float16", torch.nonzero, HOLES.half()),
    selecting("nonzero-dynamic", found, X, dynamic={0: {0: (1, 9), 1: (2, 5)}}),
    OpCase("nonzero-scalar", torch.nonzero, (torch.tensor(2.0),), unsupported="the places of a scalar"),
    selecting("masks", masked, X, normal(4, 5, seed=1)),
    selecting("masks-none", masked, NONE, X),
    selecting("masks-int64", lambda x, m: x[m], torch.arange(6).reshape(2, 3), torch.eye(2, 3).bool()),
    selecting("masks-bool", lambda x: x[x], torch.eye(3).bool()),
    selecting("masks-float16", lambda x: x[x > 0], X.half()),
    selecting("masks-inner", lambda x, m: x[:, m, 1], normal(2, 3, 4, 5), torch.eye(3, 4).bool()),
    selecting("masks-dynamic", lambda x: (x[x > 0], x[x[:, 0] > 0], x[:, x[0] > 0]), X, dynamic={0: {0: (1, 9)}}),
    selecting("selected", used, X),
    selecting("selected-none", used, NONE),
    selecting("selected-dynamic", used, X, dynamic={0: {0: (1, 9)}}),
    *(selecting(f"selected-{name}", selected(use), X) for name, use in USES.items()),
    *(
        OpCase(
            f"selected-{name}", selected(use), (X,), unsupported="wrong values for it with a size that depends on data"
        )
        for name, use in REFUSED_USES.items()
    ),
    selecting("written-by-mask", written, X, X.abs()),
    selecting("written-by-mask-none", written, NONE, NONE),
    selecting("experts-routed", experts, normal(12, 5), normal(5, 3)),
    selecting("experts-routed-dynamic", experts, normal(12, 5), normal(5, 3), dynamic={0: {0: (1, 20)}}),
    *(
        OpCase(f"nonzero_static-{size}-{number}", partial(torch.nonzero_static, size=size, fill_value=size - 3), (x,))
        for size in (1, 4, 30)
        for number, x in enumerate((X, torch.zeros(2, 3), HOLES, HOLES > 0, torch.tensor([0, 2**40, -1]), HOLES.half()))
    ),
    OpCase("nonzero_static-dynamic", partial(torch.nonzero_static, size=6), (X,), dynamic={0: {0: (1, 9), 1: (2, 5)}}),
    OpCase("nonzero_static-empty", partial(torch.nonzero_static, size=2), (torch.ones(0, 3),)),
    OpCase("nonzero_static-none", partial(torch.nonzero_static, size=0), (X,), unsupported="no places"),
    OpCase(
        "nonzero_static-scalar", partial(torch.nonzero_static, size=2), (torch.tensor(2.0),), unsupported="a scalar"
    ),
]
