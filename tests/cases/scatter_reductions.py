"""Rows of torch2trt/converters/scatter_reductions.py and torch2trt/converters/segments.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.export import Dim

from tests.cases import normal, together
from tests.harness import OpCase

X, Y = normal(2, 5, 4), normal(2, 5, 4, seed=1)
INTS, OTHERS = torch.arange(40).reshape(2, 5, 4) - 20, torch.arange(40).reshape(2, 5, 4).flip(1) % 7 - 3
BYTES = INTS.to(torch.uint8)
PICKS = torch.tensor([3, 0, 3, 3, 1])
SPECIAL = torch.tensor([1.0, math.inf, 2.0, -math.inf, math.nan]).reshape(1, 5, 1).expand(2, 5, 4).clone()


def _apart(i: torch.Tensor) -> torch.Tensor:
    """An index that differs from column to column, with duplicates in each."""
    return (i.reshape(1, 5, 1) + torch.arange(4)).expand(2, 5, 4) % 5


def _together(i: torch.Tensor) -> torch.Tensor:
    """An index that is the same for all columns."""
    return i.reshape(1, 5, 1).expand(2, 5, 4)


def reductions(place: Callable[[torch.Tensor], torch.Tensor], names: str) -> Callable[..., tuple[Any, ...]]:
    return together(
        *(
            lambda x, i, y, name=name, own=own: x.scatter_reduce(1, place(i), y, name, include_self=own)
            for name in names.split()
            for own in (True, False)
        )
    )


INDEX_REDUCTIONS = together(
    *(
        lambda x, i, y, name=name, own=own: x.index_reduce(1, i, y, name, include_self=own)
        for name in ("prod", "mean", "amax", "amin")
        for own in (True, False)
    )
)
REDUCTIONS = "sum prod mean amax amin"
ADDS = together(
    lambda x, i, y: x.scatter_add(-1, (i % 4).reshape(1, 1, 5)[..., :3].repeat(2, 4, 1), y[..., :3]),
    lambda x, i, y: x.scatter_add(0, (i % 2).reshape(1, 5, 1).expand(3, 5, 2), y.repeat(2, 1, 1)),
    lambda x, i, y: x[0, :, 0].scatter_add(0, i, y[0, :, 1]),
    lambda x, i, y: x[0, 0, 0].scatter_add(0, i[1], y[1, 1, 1]),
    lambda x, i, y: x.scatter_add(1, _together(i)[:, :0], y),
    lambda x, i, y: x.index_add(1, i, y),
    lambda x, i, y: x.index_add(-1, i % 4, y.repeat(1, 1, 2)[..., :5], alpha=3),
    lambda x, i, y: x[0, 0, 0].index_add(0, i[1], y[1, 1, 1]),
    lambda x, i, y: x.scatter(1, _apart(i), 2, reduce="add"),
    lambda x, i, y: x.scatter(1, _apart(i), 2, reduce="multiply"),
)
PUTS = together(
    lambda x, i, y: x.index_put((i % 2, i), y[0], accumulate=True),
    lambda x, i, y: x.index_put((i % 2 - 2, i - 5), y[0], accumulate=True),
    lambda x, i, y: x.index_put((i % 2,), y[:1], accumulate=True),
    lambda x, i, y: x.index_put((i[:2, None] % 2, i, i % 4), y[0, 0, 0], accumulate=True),
    lambda x, i, y: x.put(i - 7, y[0, :, 0], accumulate=True),
    lambda x, i, y: x.put(torch.arange(-5, 0), y[0, :, 0]),
)
BATCH = {0: {0: Dim("batch", min=1, max=4)}, 2: {0: Dim("batch", min=1, max=4)}}


# -- as graph networks have it -----------------------------------------------------------------------------------------


def _edges(nodes: int, edges: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return normal(nodes, width), torch.randint(0, nodes, (2, edges), generator=generator)


def _messages(x: torch.Tensor, edges: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A mean over the neighbours, a sum, and an attention that is normalised over them."""
    edges = edges % x.shape[0]
    sources, targets = x.index_select(0, edges[0]), edges[1]
    column = targets.unsqueeze(-1).expand_as(sources)
    mean = torch.zeros_like(x).scatter_reduce(0, column, sources, "mean", include_self=False)
    score = (sources * x[targets]).sum(-1)
    highest = score.new_full((x.shape[0],), -math.inf).index_reduce(0, targets, score, "amax")
    weight = (score - highest[targets]).exp()
    total = torch.zeros_like(highest).index_add(0, targets, weight)
    attended = torch.zeros_like(x).index_add(0, targets, sources * (weight / total[targets]).unsqueeze(-1))
    return x + torch.zeros_like(x).scatter_add(0, column, sources), mean, attended


_NODES, _EDGES = Dim("nodes", min=2, max=500), Dim("edges", min=1, max=9000)

MANY = together(
    *(lambda x, i, y, name=name: x.scatter_reduce(1, i, y, name, include_self=False) for name in REDUCTIONS.split())
)
_SQUARES = torch.arange(8000).reshape(2, 4000) ** 2 % 601 % 590

CASES = [
    OpCase("scatter_reduce", reductions(_apart, REDUCTIONS), (X, PICKS, Y)),
    OpCase("scatter_reduce-together", reductions(_together, REDUCTIONS), (X, PICKS, Y)),
    OpCase("scatter_reduce-int64", reductions(_apart, REDUCTIONS), (INTS, PICKS, OTHERS)),
    OpCase("scatter_reduce-half", reductions(_together, REDUCTIONS), (X.half(), PICKS, Y.half())),
    OpCase("scatter_reduce-bool", reductions(_together, "sum prod amax amin"), (X > 0, PICKS, Y > 0)),
    OpCase("scatter_reduce-bytes", reductions(_together, REDUCTIONS), (BYTES, PICKS, BYTES.flip(1))),
    OpCase("scatter_reduce-special", reductions(_together, "sum prod mean"), (X, PICKS.flip(0), SPECIAL)),
    # TensorRT's extremes pass over NaN.
    OpCase(
        "scatter_reduce-infinite",
        reductions(_together, "amax amin"),
        (X, PICKS.flip(0), SPECIAL.nan_to_num(3, math.inf)),
    ),
    OpCase("scatter_reduce-dynamic", reductions(lambda i: _together(i)[:1], REDUCTIONS), (X, PICKS, Y), dynamic=BATCH),
    OpCase("index_reduce", INDEX_REDUCTIONS, (X, PICKS, Y)),
    OpCase("index_reduce-int32", INDEX_REDUCTIONS, (INTS.int(), PICKS.int(), OTHERS.int())),
    OpCase("adds", ADDS, (X, PICKS, Y)),
    OpCase("adds-int64", ADDS, (INTS, PICKS, OTHERS)),
    OpCase("adds-half", ADDS, (X.half(), PICKS, Y.half())),
    OpCase("adds-constant", ADDS, (X, PICKS, Y), weights=(1,)),
    OpCase("accumulate", PUTS, (X, PICKS, Y)),
    OpCase("accumulate-int64", PUTS, (INTS, PICKS, OTHERS)),
    OpCase("messages-small", _messages, _edges(7, 20, 4)),
    OpCase("messages", _messages, _edges(700, 5000, 6)),
    OpCase("messages-dynamic", _messages, _edges(300, 4500, 8), dynamic={0: {0: _NODES}, 1: {1: _EDGES}}),
    OpCase("scatter_reduce-many", MANY, (normal(2, 600), _SQUARES, normal(2, 4000) / 8 + 1), tolerance=4.0),
    OpCase(
        "index_add-refused",
        lambda x, i, y: x.index_add(0, i, y.expand(10**6, 512)),
        (normal(10**6, 1).expand(10**6, 512), torch.zeros(10**6, dtype=torch.int64), normal(1, 512)),
        unsupported="TensorRT sorts 3840 elements at most",
    ),
]
