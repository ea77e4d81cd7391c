"""Rows of torch2trt/converters/padding.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase

aten = torch.ops.aten
SEQUENCE, IMAGE, VOLUME = normal(3, 5, 6), normal(2, 3, 5, 6), normal(1, 2, 4, 5, 6)
WHOLE = torch.arange(24).reshape(2, 3, 4)


def pads(*amounts: tuple[int, ...], mode: str = "constant", value: float | None = None) -> Callable[..., Any]:
    return together(*(partial(F.pad, pad=amount, mode=mode, value=value) for amount in amounts))


def each(*functions: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """One function for each tensor."""
    return lambda *tensors: tuple(function(tensor) for function, tensor in zip(functions, tensors, strict=True))


def to_multiple(x: torch.Tensor) -> torch.Tensor:
    """What Swin does before it cuts windows: an amount that depends on a dynamic size."""
    return F.pad(x, (0, (4 - x.shape[3] % 4) % 4))


CONSTANT = [
    OpCase("pad", pads((1, 2, 3, 0), (1, 0, 0, 2, 1, 1, 0, 1), (-1, 2, -2, -1)), (IMAGE,)),
    OpCase("pad-nothing", lambda x: F.pad(x, (0, 0)) + 1, (IMAGE,)),
    OpCase("pad-value", pads((1, 0, 0, 2), value=-1.5), (IMAGE,)),
    OpCase("pad-infinity", pads((1, 1), value=-math.inf), (IMAGE,)),
    OpCase("pad-dynamic", pads((1, 2, -1, 1)), (IMAGE,), dynamic={0: {0: (1, 4), 2: (3, 9), 3: (2, 8)}}),
    OpCase("pad-to-multiple", to_multiple, (IMAGE,), dynamic={0: {3: (2, 9)}}),
    OpCase("pad-of-nothing", pads((0, 0, 1, 2), value=1.5), (IMAGE[:, :, :0],)),
    OpCase("pad-integers", each(pads((2, 1), value=7), pads((2, 1, -1, 1))), (WHOLE, WHOLE.int())),
    OpCase("pad-bool", pads((2, 1), value=True), (WHOLE % 3 == 0,)),
    OpCase("pad-float16", pads((2, 1), value=0.5), (IMAGE.half(),)),
    OpCase("pad-bfloat16", pads((2, 1), value=0.5), (IMAGE.bfloat16(),)),
    OpCase("pad-int8", pads((2, 1)), (WHOLE.to(torch.int8),), unsupported="int8"),
    OpCase("constant_pad_nd", aten.constant_pad_nd.default, (IMAGE, [1, 2, 3, 0], 2.5)),
]

AMOUNTS = ([2, 1], [2, 1, 0, 3], [2, 1, 0, 3, 1, 1])
EDGES = [
    *(
        OpCase(
            f"pad-{mode}",
            each(*(pads(amounts, mode=mode) for amounts in ((1, 2, 3, 0), (3, 2), (1, 2, 0, 1, 2, 1), (1, 2)))),
            (IMAGE, SEQUENCE, VOLUME, WHOLE),
        )
        for mode in ("reflect", "replicate", "circular")
    ),
    *(
        OpCase(f"pad-{mode}-dynamic", pads((2, 1, 0, 2), mode=mode), (IMAGE,), dynamic={0: {0: (1, 3), 3: (3, 9)}})
        for mode in ("reflect", "replicate", "circular")
    ),
    OpCase("pad-reflect-crop", pads((-1, 2, 1, -2), mode="reflect"), (IMAGE,)),
    OpCase("pad-replicate-crop", pads((-1, 2, 1, -2), (9, 8, 0, 0), mode="replicate"), (IMAGE,)),
    OpCase("pad-circular-crop", pads((-1, 2, 0, 0), mode="circular"), (IMAGE,), unsupported="crops"),
    OpCase("pad-reflect-float16", pads((1, 2, 3, 0), mode="reflect"), (IMAGE.half(),)),
    *(
        OpCase(
            f"{name}1d-to-3d",
            each(*(partial(getattr(aten, f"{name}{len(amounts) // 2}d"), padding=amounts) for amounts in AMOUNTS)),
            (SEQUENCE, IMAGE, VOLUME),
        )
        for name in ("reflection_pad", "replication_pad")
    ),
]

CASES = [*CONSTANT, *EDGES]
