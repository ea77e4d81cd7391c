"""Rows of torch2trt/converters/padding.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.cases import normal
from tests.harness import OpCase

aten = torch.ops.aten
IMAGE, VOLUME = normal(2, 3, 5, 6), normal(1, 2, 4, 5, 6)
WHOLE = torch.arange(24).reshape(2, 3, 4)


def to_multiple(x: torch.Tensor) -> torch.Tensor:
    """What Swin does before it cuts windows: an amount that depends on a dynamic size."""
    return F.pad(x, (0, (4 - x.shape[3] % 4) % 4))


CONSTANT = [
    OpCase("pad-constant", F.pad, (IMAGE, (1, 2, 3, 0))),
    OpCase("pad-constant-value", F.pad, (IMAGE, (1, 0, 0, 2), "constant", -1.5)),
    OpCase("pad-constant-infinity", F.pad, (IMAGE, (1, 1), "constant", -math.inf)),
    OpCase("pad-constant-all-dims", F.pad, (IMAGE, (1, 0, 0, 2, 1, 1, 0, 1))),
    OpCase("pad-constant-crop", F.pad, (IMAGE, (-1, 2, -2, -1))),
    OpCase("pad-constant-nothing", lambda x: F.pad(x, (0, 0)) + 1, (IMAGE,)),
    OpCase("pad-constant-dynamic", F.pad, (IMAGE, (1, 2, -1, 1)), dynamic={0: {0: (1, 4), 2: (3, 9), 3: (2, 8)}}),
    OpCase("pad-constant-to-multiple", to_multiple, (IMAGE,), dynamic={0: {3: (2, 9)}}),
    OpCase("pad-constant-int64", F.pad, (WHOLE, (2, 1), "constant", 7)),
    OpCase("pad-constant-int32", F.pad, (WHOLE.int(), (2, 1, -1, 1))),
    OpCase("pad-constant-bool", F.pad, (WHOLE % 3 == 0, (2, 1), "constant", True)),
    OpCase("pad-constant-float16", F.pad, (IMAGE.half(), (2, 1), "constant", 0.5)),
    OpCase("pad-constant-bfloat16", F.pad, (IMAGE.bfloat16(), (2, 1), "constant", 0.5)),
    OpCase("pad-constant-int8", F.pad, (WHOLE.to(torch.int8), (2, 1)), unsupported="int8"),
    OpCase("constant_pad_nd", aten.constant_pad_nd.default, (IMAGE, [1, 2, 3, 0], 2.5)),
]

EDGES = [
    *(OpCase(f"pad-{mode}", F.pad, (IMAGE, (1, 2, 3, 0), mode)) for mode in ("reflect", "replicate", "circular")),
    *(OpCase(f"pad-{mode}-sequence", F.pad, (IMAGE[0], (3, 2), mode)) for mode in ("reflect", "replicate", "circular")),
    *(
        OpCase(f"pad-{mode}-volume", F.pad, (VOLUME, (1, 2, 0, 1, 2, 1), mode))
        for mode in ("reflect", "replicate", "circular")
    ),
    *(
        OpCase(f"pad-{mode}-dynamic", F.pad, (IMAGE, (2, 1, 0, 2), mode), dynamic={0: {0: (1, 3), 3: (3, 9)}})
        for mode in ("reflect", "replicate", "circular")
    ),
    OpCase("pad-replicate-beyond", F.pad, (IMAGE, (9, 8, 0, 0), "replicate")),
    OpCase("pad-reflect-crop", F.pad, (IMAGE, (-1, 2, 1, -2), "reflect")),
    OpCase("pad-replicate-crop", F.pad, (IMAGE, (-1, 2, 1, -2), "replicate")),
    OpCase("pad-circular-crop", F.pad, (IMAGE, (-1, 2, 0, 0), "circular"), unsupported="crops"),
    OpCase("pad-reflect-float16", F.pad, (IMAGE.half(), (1, 2, 3, 0), "reflect")),
    OpCase("pad-circular-int64", F.pad, (WHOLE, (1, 2), "circular")),
    OpCase("reflection_pad1d", aten.reflection_pad1d.default, (IMAGE[0], [2, 1])),
    OpCase("reflection_pad2d", aten.reflection_pad2d.default, (IMAGE, [2, 1, 0, 3])),
    OpCase("reflection_pad3d", aten.reflection_pad3d.default, (VOLUME, [2, 1, 0, 3, 1, 1])),
    OpCase("replication_pad1d", aten.replication_pad1d.default, (IMAGE[0], [2, 1])),
    OpCase("replication_pad2d", aten.replication_pad2d.default, (IMAGE, [2, 1, 0, 3])),
    OpCase("replication_pad3d", aten.replication_pad3d.default, (VOLUME, [2, 1, 0, 3, 1, 1])),
]

CASES = [*CONSTANT, *EDGES]
