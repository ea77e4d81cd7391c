"""Rows of torch2trt/converters/detection.py."""

from __future__ import annotations

from functools import partial

import torch
from torch.export import Dim
from torchvision import ops

from tests.cases import normal, together
from tests.harness import OpCase

BATCH = Dim("batch", min=1, max=4)
IMAGE = normal(2, 6, 9, 8)
# Inside, across the borders, outside, inverted, empty.
BOXES = torch.tensor(
    [
        [1.0, 2.0, 9.0, 11.0],
        [-6.0, -3.0, 40.0, 7.0],
        [50.0, 60.0, 70.0, 90.0],
        [9.0, 8.0, 3.0, 2.0],
        [5.0, 5.0, 5.0, 5.0],
        [0.3, 0.2, 30.7, 35.9],
    ]
)
REGIONS = torch.cat([torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0], [0.0]]), BOXES], 1)

ALIGNED = together(
    *(
        partial(ops.roi_align, spatial_scale=0.25, sampling_ratio=2, output_size=(3, 2), aligned=aligned)
        for aligned in (False, True)
    )
)
PLANES = normal(2, 12, 9, 8)
PLANES_ALIGNED = together(
    *(partial(ops.ps_roi_align, spatial_scale=0.25, sampling_ratio=2, output_size=size) for size in ((3, 2), (1, 4)))
)
REGION_ROWS = [
    OpCase("roi_align", ALIGNED, (IMAGE, REGIONS)),
    OpCase("roi_align-one-sample", ops.roi_align, (IMAGE, REGIONS, 5, 0.2, 1)),
    OpCase("roi_align-boxes", lambda x, a, b: ops.roi_align(x, [a, b], 7, 1.0, 3, True), (IMAGE, BOXES[:2], BOXES[2:])),
    OpCase("roi_align-dynamic", ALIGNED, (IMAGE, REGIONS), dynamic={0: {2: (5, 9), 3: (5, 9)}, 1: {0: (1, 8)}}),
    OpCase("roi_align-float16", ALIGNED, (IMAGE.half(), REGIONS.half())),
    OpCase("ps_roi_align", PLANES_ALIGNED, (PLANES, REGIONS)),
    OpCase("ps_roi_align-one-sample", ops.ps_roi_align, (PLANES, REGIONS, 2, 0.2, 1)),
    OpCase("ps_roi_align-one-bin", ops.ps_roi_align, (PLANES, REGIONS, 1, 1.0, 3)),
    OpCase(
        "ps_roi_align-dynamic",
        PLANES_ALIGNED,
        (PLANES, REGIONS),
        dynamic={0: {0: Dim("items", min=2, max=4), 2: (5, 9), 3: (5, 9)}, 1: {0: (1, 8)}},
    ),
    OpCase("ps_roi_align-float16", PLANES_ALIGNED, (PLANES.half(), REGIONS.half())),
    OpCase("ps_roi_align-adaptive", ops.ps_roi_align, (PLANES, REGIONS, 2), unsupported="sampling_ratio"),
    OpCase(
        "ps_roi_align-channels",
        torch.ops.torchvision.ps_roi_align,
        (PLANES, REGIONS, 1.0, 2, 2, 1),
        unsupported="what their gradient",
    ),
    OpCase("roi_align-adaptive", ops.roi_align, (IMAGE, REGIONS, 3), unsupported="sampling_ratio"),
    OpCase(
        "box-functions",
        lambda a, b: (
            ops.box_iou(a, b),
            ops.generalized_box_iou(a, b),
            ops.distance_box_iou(a, b),
            ops.box_area(a),
            ops.box_convert(a, "xyxy", "cxcywh"),
            ops.clip_boxes_to_image(a, (20, 30)),
        ),
        (BOXES[[0, 1, 5]], BOXES[[2, 5]]),
        dynamic={0: {0: (1, 5)}},
    ),
]


def offsets(groups: int, size: tuple[int, int], window: int = 9) -> torch.Tensor:
    return normal(2, 2 * groups * window, *size) * 2


WEIGHT = normal(4, 6, 3, 3)
DEFORMED = [
    OpCase("deform_conv2d", ops.deform_conv2d, (IMAGE, offsets(1, (7, 6)), WEIGHT), weights=(2,)),
    OpCase(
        "deform_conv2d-groups",
        ops.deform_conv2d,
        (IMAGE, offsets(2, (5, 4), 6), normal(6, 2, 3, 2), normal(6), (2, 3), (1, 2), (1, 2), torch.rand(2, 12, 5, 4)),
        weights=(2, 3),
    ),
    OpCase(
        "deform_conv2d-dynamic",
        ops.deform_conv2d,
        (IMAGE, offsets(3, (7, 6)), WEIGHT),
        dynamic={0: {0: BATCH}, 1: {0: BATCH}},
        weights=(2,),
    ),
    OpCase("deform_conv2d-float16", ops.deform_conv2d, (IMAGE.half(), offsets(1, (7, 6)).half(), WEIGHT.half())),
]

CASES = [*REGION_ROWS, *DEFORMED]
