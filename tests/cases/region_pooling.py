"""Rows of torch2trt/converters/region_pooling.py."""

from __future__ import annotations

from functools import partial

import torch
from torch.export import Dim
from torchvision import ops

from tests.cases import normal, together
from tests.cases.detection import BOXES, IMAGE, PLANES, REGIONS
from tests.harness import OpCase

# Beside those, corners halfway between two elements, above and below zero.
HALFWAY = torch.tensor([[0.0, 2.0, 6.0, 10.0, 14.0], [1.0, -2.0, -6.0, 22.0, 18.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
MORE = torch.cat([REGIONS, HALFWAY])
ALL = torch.cat([torch.zeros(6, 1), BOXES * 4], 1)

POOLED = together(*(partial(ops.roi_pool, output_size=size, spatial_scale=0.25) for size in ((3, 2), (1, 1), (5, 7))))
MEANS = together(*(partial(ops.ps_roi_pool, output_size=size, spatial_scale=0.25) for size in ((3, 2), (1, 1), 2)))
INFINITE = (
    torch.tensor([1.0, -torch.inf, torch.inf, -2.0, -torch.inf, -torch.inf]).reshape(1, 1, 2, 3).expand(2, 1, 2, 3)
)
SIZES = {0: {0: Dim("batch", min=2, max=4), 2: (5, 9), 3: (5, 17)}, 1: {0: (1, 12)}}

CASES = [
    OpCase("roi_pool", POOLED, (IMAGE, MORE)),
    OpCase("roi_pool-pixels", ops.roi_pool, (IMAGE, MORE, 3)),
    OpCase("roi_pool-whole", ops.roi_pool, (normal(1, 3, 33, 20), ALL, 2)),
    OpCase("roi_pool-boxes", lambda x, a, b: ops.roi_pool(x, [a, b], 4), (IMAGE, BOXES[:2], BOXES[2:])),
    OpCase("roi_pool-one-element", ops.roi_pool, (normal(2, 4, 1, 1), MORE, 2)),
    OpCase("roi_pool-infinite", ops.roi_pool, (INFINITE, MORE, 2)),
    OpCase("roi_pool-dynamic", POOLED, (IMAGE, MORE), dynamic=SIZES),
    OpCase("roi_pool-float16", POOLED, (IMAGE.half(), MORE.half())),
    OpCase(
        "roi_pool-places", torch.ops.torchvision.roi_pool, (IMAGE, MORE, 1.0, 2, 2), unsupported="what their gradient"
    ),
    OpCase("roi_pool-large", ops.roi_pool, (torch.zeros(1, 512, 256, 256), MORE, 7), unsupported="blocks of all sizes"),
    OpCase("ps_roi_pool", MEANS, (PLANES, MORE)),
    OpCase("ps_roi_pool-pixels", ops.ps_roi_pool, (PLANES, MORE, 2)),
    OpCase("ps_roi_pool-whole", ops.ps_roi_pool, (normal(1, 4, 33, 20), ALL, 2)),
    OpCase("ps_roi_pool-one-element", ops.ps_roi_pool, (normal(2, 4, 1, 1), MORE, 2)),
    OpCase("ps_roi_pool-infinite", ops.ps_roi_pool, (INFINITE, MORE, 1)),
    OpCase("ps_roi_pool-dynamic", MEANS, (PLANES, MORE), dynamic=SIZES),
    OpCase("ps_roi_pool-float16", MEANS, (PLANES.half(), MORE.half())),
]
