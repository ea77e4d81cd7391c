"""Rows of torch2trt/converters/searching.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.export import Dim

from tests import torch_can
from tests.cases import normal, together
from tests.harness import OpCase

EDGES, X = torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.25, 2.0]), normal(3, 5)
LINES = normal(3, 4).sort(-1).values
SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 0.25, -1.0, 2.0])
INTS, INT_EDGES = torch.arange(-4, 8).reshape(3, 4), torch.tensor([-3, 0, 0, 5])
MANY, SOUGHT = normal(4001).sort().values, normal(1200)

SEARCHES = together(
    lambda x, edges: torch.bucketize(x, edges),
    lambda x, edges: torch.bucketize(x, edges, right=True),
    lambda x, edges: torch.bucketize(x, edges, out_int32=True),
    lambda x, edges: torch.searchsorted(edges, x),
    lambda x, edges: torch.searchsorted(edges, x, side="right"),
    lambda x, edges: torch.searchsorted(edges, x.flatten()[3]),
    lambda x, edges: torch.searchsorted(edges, 0.0, right=True),
    lambda x, edges: torch.searchsorted(edges.flip(0), x, sorter=torch.arange(edges.shape[0]).flip(0)),
)
OF_LINES = together(
    lambda x, edges: torch.searchsorted(edges, x),
    lambda x, edges: torch.searchsorted(edges, x[:, :2].contiguous(), right=True),
    lambda x, edges: torch.searchsorted(edges[0], x),
)
OF_STEPS = together(
    lambda x, many: torch.bucketize(x, torch.arange(many.shape[0]) / 8 - 2),
    lambda x, many: torch.searchsorted(torch.arange(many.shape[0]) // 3, (x * 100).long(), right=True),
)
HISTOGRAMS = together(
    lambda x: torch.histc(x, 7, -1, 1),
    lambda x: torch.histc(x, 5),
    lambda x: torch.histc(x * 0, 4),
    lambda x: torch.histc(x * 0 + 3, 4, 0, 3),
    lambda x: torch.histc(x[:0], 4, 0, 3),
)


def counted(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Counts of which the module says how many there are."""
    found = torch.bincount(x, minlength=7), torch.bincount(x, w, 9)
    torch._check(found[0].shape[0] == 7)
    torch._check(found[1].shape[0] == 9)
    return *found, found[0].cumsum(0), found[0] / found[0].sum() + torch.arange(7), found[1].argmax()


COUNT = Dim("count", min=1, max=6000)


def counted_far(x: torch.Tensor) -> torch.Tensor:
    found = torch.bincount(x, minlength=1000)
    torch._check(found.shape[0] == 1000)
    return found


BINS = torch.tensor([3, 1, 1, 6, 0, 3, 1])


def bins(name: str, function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], **options: Any) -> OpCase:
    return OpCase(name, function, inputs, needs=torch_can.trace_counts, **options)


CASES = [
    OpCase("searches", SEARCHES, (X, EDGES)),
    OpCase("searches-constant", SEARCHES, (X, EDGES), weights=(1,)),
    OpCase("searches-half", SEARCHES, (X.half(), EDGES.half())),
    OpCase("searches-int64", SEARCHES, (INTS, INT_EDGES)),
    OpCase("searches-special", SEARCHES, (SPECIAL, EDGES)),
    OpCase("searches-dynamic", SEARCHES, (X, EDGES), dynamic={0: {0: (1, 6)}, 1: {0: (1, 6)}}),
    OpCase("searches-of-lines", OF_LINES, (X, LINES)),
    OpCase("searches-of-lines-dynamic", OF_LINES, (X, LINES), dynamic={0: {1: (3, 6)}}),
    OpCase("searches-of-many", SEARCHES, (torch.cat([SOUGHT, MANY[-5:], SPECIAL]), MANY)),
    OpCase("searches-of-many-lines", OF_LINES, (SOUGHT.reshape(2, 600), normal(2, 4001).sort(-1).values)),
    OpCase("searches-of-many-dynamic", OF_STEPS, (SOUGHT, MANY), dynamic={1: {0: (1, 4500)}}),
    OpCase(
        "repeat_interleave-each",
        lambda x, n: (x.repeat_interleave(n, 0, output_size=7), x.repeat_interleave(n + 1, 0, output_size=10)),
        (X, torch.tensor([3, 0, 4])),
    ),
    OpCase("histc", HISTOGRAMS, (normal(40),)),
    OpCase("histc-half", HISTOGRAMS, (normal(40).half(),)),
    OpCase("histc-special", lambda x: torch.histc(x, 6, -1, 2), (SPECIAL,)),
    OpCase("histc-many", lambda x: torch.histc(x, 1000, -3, 3), (normal(9000),)),
    bins("bincount", counted, (BINS, normal(7))),
    bins("bincount-int32", counted, (BINS.int(), normal(7))),
    bins("bincount-uint8", counted, (BINS.to(torch.uint8), normal(7))),
    bins("bincount-many", counted, (torch.arange(9000) ** 2 % 7, normal(9000))),
    bins("bincount-many-bins", counted_far, (torch.arange(9000) ** 2 % 997,)),
    bins("bincount-one", counted, (BINS[:1], normal(2)[:1])),
    bins("bincount-empty", counted, (BINS[:0], normal(2)[:0])),
    bins("bincount-dynamic", counted, (BINS, normal(7)), dynamic={0: {0: COUNT}, 1: {0: COUNT}}),
    bins("bincount-unknown", lambda x: torch.bincount(x, minlength=7), (BINS,), unsupported="torch._check"),
    OpCase("histc-dynamic", lambda x: torch.histc(x, 6, -1, 2), (normal(40),), dynamic={0: {0: (1, 5000)}}),
]
