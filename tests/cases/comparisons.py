"""Rows of torch2trt/converters/comparisons.py."""

from __future__ import annotations

import math

import torch

from tests.cases import normal, together
from tests.harness import OpCase

X, Y = normal(2, 3, 4), normal(2, 3, 4, seed=1)
INTS = torch.arange(-12, 12).reshape(2, 3, 4)
FLAGS, OTHER_FLAGS = X > 0, Y > 0
ODD = torch.tensor([0.0, 1.0, math.nan, math.inf, -math.inf, -2.0])
BYTES = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
BATCH = {0: {0: (1, 5)}}

COMPARISONS = together(torch.eq, torch.ne, torch.gt, torch.lt, torch.ge, torch.le)
LOGIC = together(torch.logical_and, torch.logical_or, torch.logical_xor, lambda x, y: x.logical_not())
FINITE = together(torch.isnan, torch.isinf, torch.isfinite, torch.isposinf, torch.isneginf)

CASES = [
    *(
        OpCase(f"comparisons-{text}", COMPARISONS, args)
        for text, args in {
            "float": (X, Y),
            "half-number": (X.half(), X[0, 0, 0].half().item()),
            "half-float": (X.half(), Y),
            "int": (INTS, INTS.flip(0).to(torch.int32)),
            "int-float-number": (INTS, 0.5),
            "bytes": (BYTES, 9),
            "bool": (FLAGS, OTHER_FLAGS),
            "bool-number": (FLAGS, True),
            "nan": (ODD, ODD.flip(0)),
            "nan-number": (ODD, 0.0),
            "scalars": (torch.tensor(1), torch.tensor(1.0)),
            "broadcast": (torch.arange(3), torch.arange(4).unsqueeze(1)),
        }.items()
    ),
    OpCase("comparisons-dynamic", COMPARISONS, (X, 0.1), dynamic=BATCH),
    OpCase("comparison-with-size", lambda x: x < x.shape[0], (INTS,), dynamic=BATCH),
    OpCase("isclose", torch.isclose, (X, Y), {"atol": 0.5}),
    *(
        OpCase(f"logic-{text}", LOGIC, args)
        for text, args in {
            "bool": (FLAGS, OTHER_FLAGS),
            "float": (X.relu(), Y),
            "int-bool": (INTS, FLAGS),
            "scalar": (torch.tensor(False), FLAGS),
        }.items()
    ),
    OpCase(
        "where",
        together(
            torch.where,
            lambda flags, x, y: torch.where(flags, x, 0.5),
            lambda flags, x, y: torch.where(flags, -math.inf, y),
            lambda flags, x, y: torch.where(flags, 1.0, 0.0),
            lambda flags, x, y: torch.where(flags, 1, 0),
            lambda flags, x, y: torch.where(flags[0, 0], x[:, :, :1], y[:1]),
            lambda flags, x, y: torch.where(flags, flags, torch.tensor(True)),
        ),
        (FLAGS, X, Y),
    ),
    OpCase("where-int-float", torch.where, (FLAGS, INTS, X)),
    OpCase(
        "where-half-scalar",
        lambda c, x, y: (torch.where(c, x, 0.25), torch.where(c, x, y)),
        (FLAGS, X.half(), torch.tensor(2.0)),
    ),
    OpCase("where-bytes", torch.where, (FLAGS, BYTES, BYTES.flip(0))),
    OpCase("where-dynamic", lambda x: torch.where(x > 0, x, x * 0.1), (X,), dynamic=BATCH),
    OpCase(
        "masked_fill",
        together(
            lambda x, mask, value: x.masked_fill(mask, -math.inf),
            lambda x, mask, value: x.masked_fill(mask[0, 0], 7),
            lambda x, mask, value: x.long().masked_fill(mask, 7),
            lambda x, mask, value: mask.masked_fill(mask, False),
            torch.masked_fill,
            lambda x, mask, value: x.masked_fill(mask, value.int()),
        ),
        (X, FLAGS, torch.tensor(2.5)),
    ),
    OpCase("masked_fill-half", torch.masked_fill, (X.half(), FLAGS, -1e4)),
    OpCase("finite", FINITE, (ODD,)),
    OpCase("finite-half", FINITE, (ODD.half(),)),
    OpCase("finite-int", FINITE, (INTS,)),
    OpCase("finite-scalar", FINITE, (torch.tensor(math.nan),)),
    OpCase("finite-dynamic", FINITE, (X,), dynamic=BATCH),
    OpCase("isin", lambda x, y: (torch.isin(x, y), torch.isin(x, y, invert=True)), (INTS, INTS[:, 1, ::2] + 2)),
    OpCase("isin-dynamic", torch.isin, (INTS, torch.tensor([3, 7])), dynamic=BATCH),
    OpCase("isin-number", torch.isin, (INTS, 3)),
    OpCase("fmax", together(torch.fmax, torch.fmin), (ODD, ODD.roll(1))),
    OpCase("fmax-int", together(torch.fmax, torch.fmin), (INTS, INTS.flip(0))),
    OpCase("nan_to_num", torch.nan_to_num, (ODD, 1.0, 2.0, 3.0)),
    OpCase("nan_to_num-half", torch.nan_to_num, (ODD[:3].half(),)),
    OpCase("nan_to_num-int", lambda x: x.nan_to_num() + 1, (INTS,)),
]
