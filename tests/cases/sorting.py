"""Rows of torch2trt/converters/sorting.py."""

from __future__ import annotations

import math

import torch

from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 3, 5)
# No two equal: which of them comes first is nobody's promise, but where a stable sort is asked for.
INTS = torch.randperm(30, generator=torch.Generator().manual_seed(0)).reshape(2, 3, 5) - 9
SCALAR = torch.tensor(3.0)
BATCH, BOTH = {0: {0: (1, 4)}}, {0: {0: (1, 4), 2: (3, 5)}}
EQUAL = (normal(3, 200) * 3).round()
NANS = EQUAL.masked_fill(EQUAL == 2, math.nan).masked_fill(EQUAL == 3, math.inf).masked_fill(EQUAL == -4, -math.inf)

SORTS = together(
    lambda x: x.sort(1),
    lambda x: x.sort(descending=True),
    lambda x: x.argsort(),
    lambda x: x.argsort(1, descending=True),
    lambda x: x.msort(),
)
STABLE = together(
    *(lambda x, down=down: x.sort(stable=True, descending=down) for down in (False, True)),
    lambda x: x.sort(dim=0, stable=True),
    lambda x: x.argsort(stable=True),
)
SMALLEST = together(
    lambda x: x.sort(stable=True),
    lambda x: x.topk(30, largest=False).values,
    lambda x: x.kthvalue(20).values,
    lambda x: x.argmin(1),
    lambda x: x.argmax(0),
    lambda x: torch.full_like(x, -math.inf).argmax(1),
    lambda x: (x.abs() + math.inf).nan_to_num(math.inf).argmin(1),
)
MIDDLES = together(
    lambda x: x.kthvalue(2),
    lambda x: x.kthvalue(3, 1, keepdim=True),
    torch.median,
    lambda x: x.median(1),
    lambda x: x.median(-1, keepdim=True),
    torch.nanmedian,
    lambda x: x.nanmedian(0),
)
MODES = ("linear", "lower", "higher", "midpoint", "nearest")
QUANTILES = together(
    *(lambda x, mode=mode: x.quantile(0.35, 1, interpolation=mode) for mode in MODES),
    *(lambda x, q=q: x.quantile(q) for q in (0.0, 0.7, 1.0)),
    lambda x: x.quantile(0.5, -1, keepdim=True),
    lambda x: x.quantile(torch.tensor([0.1, 0.5, 1.0], dtype=x.dtype), 0),
    lambda x: x.quantile(torch.tensor([0.1, 0.9], dtype=x.dtype), 1, keepdim=True),
    lambda x: x.quantile(torch.tensor(0.3, dtype=x.dtype)),
)
NANQUANTILES = together(
    *(lambda x, q=q: x.nanquantile(q) for q in (0.0, 0.7, 1.0)),
    lambda x: x.nanquantile(0.5, -1, keepdim=True),
    lambda x: x.nanquantile(torch.tensor([0.1, 0.5, 1.0], dtype=x.dtype), 0),
)


def long(rows: int, size: int) -> torch.Tensor:
    return normal(rows, size) * 100


def many_equal(x: torch.Tensor) -> torch.Tensor:
    return (x / 50).round()


CASES = [
    OpCase("sorts", SORTS, (X,)),
    OpCase("sorts-int64", SORTS, (INTS,)),
    OpCase("sorts-half", SORTS, (INTS.half(),)),
    OpCase("sorts-bytes", SORTS, ((INTS + 9).to(torch.uint8),)),
    OpCase("sorts-dynamic-batch", lambda x: (x.sort(1), x.argsort(-1)), (X,), dynamic=BATCH),
    OpCase("sort-scalar", together(torch.sort, torch.argsort, torch.median, lambda x: x.kthvalue(1)), (SCALAR,)),
    OpCase("stable", STABLE, (EQUAL,)),
    OpCase("stable-nan", STABLE, (NANS,)),
    OpCase("smallest-special", SMALLEST, (NANS[:, :40],)),
    OpCase("smallest-special-half", SMALLEST, (NANS[:, :40].half(),)),
    OpCase("stable-int", STABLE, (EQUAL.long(),)),
    OpCase("stable-bool", STABLE, (EQUAL > 0,)),
    OpCase("stable-dynamic", lambda x: x.sort(stable=True), (EQUAL,), dynamic={0: {0: (1, 4)}}),
    OpCase("long", lambda x: x.sort(), (long(2, 4001),)),
    OpCase("long-descending", lambda x: x.sort(0, descending=True), (long(9000, 2),)),
    OpCase("long-equal", lambda x: many_equal(x).sort(stable=True), (long(2, 7700),)),
    OpCase("long-equal-int", lambda x: many_equal(x).int().sort(descending=True, stable=True), (long(2, 3841),)),
    OpCase("long-nan", lambda x: x.sort(stable=True), (NANS.repeat(1, 20),)),
    OpCase("long-nan-descending", lambda x: x.sort(stable=True, descending=True), (NANS.repeat(1, 20),)),
    OpCase("long-dynamic", lambda x: x.sort(), (long(2, 4001),), dynamic={0: {0: (1, 3)}}),
    OpCase("sort-too-many", torch.sort, (normal(1).expand(1 << 19).clone(),), unsupported="too much memory"),
    OpCase("sort-dynamic", torch.sort, (X,), dynamic=BOTH, unsupported="dynamic dimension"),
    OpCase("middles", MIDDLES, (X,)),
    OpCase("middles-int", MIDDLES, (INTS,)),
    OpCase("middles-dynamic", lambda x: (x.median(1), x.kthvalue(2), x.nanmedian(1)), (X,), dynamic=BATCH),
    OpCase("middles-nan", together(torch.median, torch.nanmedian, lambda x: x.median(1)), (NANS[:, :9],)),
    OpCase("middles-all-nan", lambda x: x.nanmedian(1).values, (torch.full((2, 3), math.nan),)),
    OpCase("kthvalue-far", lambda x: (x.kthvalue(4000), x.kthvalue(50), x.median(1)), (long(2, 8001),)),
    OpCase("quantiles", QUANTILES, (X,)),
    OpCase("quantiles-nan", QUANTILES, (NANS[:, :9].where(NANS[:, :9].isfinite(), math.nan).reshape(3, 3, 3),)),
    OpCase("quantiles-given", lambda x, q: x.quantile(q, 1), (X, torch.tensor([0.0, 0.4, 1.0]))),
    OpCase("nanquantiles", NANQUANTILES, (NANS[:, :9].reshape(3, 3, 3),)),
    OpCase("nanquantiles-all-nan", lambda x: x.nanquantile(0.4, 1), (torch.full((2, 3), math.nan),)),
    OpCase("nanquantiles-given", lambda x, q: x.nanquantile(q, 1), (X, torch.tensor([0.0, 0.4, 1.0]))),
    OpCase("nanquantiles-dynamic", lambda x: x.nanquantile(0.4, 1), (X,), dynamic=BATCH),
    OpCase("nanquantiles-lower", lambda x: x.nanquantile(0.4, interpolation="lower"), (X,), unsupported="the lower of"),
    OpCase("quantiles-dynamic", lambda x: x.quantile(0.4, 1), (X,), dynamic=BATCH),
    OpCase(
        "quantiles-rounded",
        lambda x, q: x.quantile(q, 1, interpolation="lower"),
        (X, torch.tensor([0.4])),
        unsupported="pass q as a number",
    ),
    OpCase("mode", together(lambda x: x.mode(), lambda x: x.mode(0, keepdim=True)), (EQUAL[:, :15],)),
    OpCase("mode-int", together(lambda x: x.mode(), lambda x: x.mode(0)), (EQUAL[:, :15].long(),)),
    OpCase("mode-bool", lambda x: x.mode(), (EQUAL[:, :15] > 0,)),
    OpCase("mode-nan", lambda x: x.mode().values, (torch.tensor([[math.nan, 2, 1, 2], [math.nan] * 4]),)),
    OpCase("mode-scalar", torch.mode, (SCALAR,)),
    OpCase("mode-dynamic", torch.mode, (X,), dynamic=BOTH, unsupported="dynamic dimension"),
    OpCase("mode-too-many", torch.mode, (normal(4097),), unsupported="4096 at most"),
]
