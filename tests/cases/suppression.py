"""Rows of torch2trt/converters/suppression.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torchvision import ops

from tests.harness import OpCase


def boxes(count: int, size: float = 20, seed: int = 0) -> torch.Tensor:
    """In quarters, which all types hold."""
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(count, 2, generator=generator) * 60).round() / 4
    return torch.cat([corner, corner + (torch.rand(count, 2, generator=generator) * 4 * size).round() / 4], 1)


def scores(count: int, levels: int) -> torch.Tensor:
    """Of a few levels, so that many are equal."""
    return torch.randint(levels, (count,), generator=torch.Generator().manual_seed(count)) / levels


MANY = boxes(200), scores(200, 16)
CHAIN = torch.stack([torch.arange(40.0), torch.zeros(40), torch.arange(40.0) + 2.5, torch.ones(40)], 1)
"""Each overlaps the next ones only."""
ODD = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [3, 3, 1, 1], [3, 3, 1, 1], [0, 0, 4, 4], [1, 1, 3, 3], [0, 0, 4, 4]])
LABELS = torch.arange(200) % 3


def head(prediction: torch.Tensor, lowest: float) -> tuple[torch.Tensor, ...]:
    """What a YOLO does with its predictions [n, 4 + classes]: centres, sizes and scores."""
    centre, size, classes = prediction.split([2, 2, prediction.shape[1] - 4], 1)
    best, label = classes.max(1)
    likely = best > lowest
    found = torch.cat([centre - size / 2, centre + size / 2], 1)[likely]
    best, label = best[likely], label[likely]
    kept = ops.nms(found + label[:, None] * 64.0, best, 0.45)
    return found[kept], best[kept], label[kept]


def predictions(count: int) -> torch.Tensor:
    first, last = boxes(count).split(2, 1)
    levels = torch.stack([scores(count + each, 32)[:count] for each in range(3)], 1)
    return torch.cat([(first + last) / 2, last - first, levels], 1)


def suppressing(name: str, function: Any, *args: Any, **options: Any) -> OpCase:
    return OpCase(name, function, args, rtx="no runner", **options)


CASES = [
    *(suppressing(f"nms-{level}", partial(ops.nms, iou_threshold=level), *MANY) for level in (0.0, 0.25, 0.5, 1.0)),
    suppressing("nms-equal-scores", ops.nms, boxes(50), torch.ones(50), 0.5),
    suppressing("nms-one", ops.nms, boxes(1), torch.ones(1), 0.5),
    suppressing("nms-all-but-one", ops.nms, boxes(1).expand(9, 4) + 0, scores(9, 4), 0.5),
    suppressing("nms-chain", ops.nms, CHAIN, torch.linspace(1, 0, 40), 0.25),
    suppressing("nms-without-area", ops.nms, ODD, torch.tensor([3.0, 2, 3, 2, 5, 4, 5]), 0.0),
    suppressing("nms-extreme-scores", ops.nms, boxes(6), torch.tensor([torch.inf, -torch.inf, 0, -1, -0.0, 1]), 0.1),
    suppressing("nms-float16", lambda b, s: ops.nms(b.float(), s.float(), 0.25), MANY[0].half(), MANY[1].half()),
    suppressing("batched_nms", partial(ops.batched_nms, idxs=LABELS, iou_threshold=0.25), *MANY),
    suppressing("yolo-head", partial(head, lowest=0.51), predictions(300)),
    suppressing("yolo-head-none", partial(head, lowest=2.0), predictions(300)),
    suppressing("yolo-head-dynamic", partial(head, lowest=0.51), predictions(300), dynamic={0: {0: (2, 400)}}),
    suppressing("nms-large", ops.nms, boxes(4000, 4), scores(4000, 512), 0.5),
]
