"""Rows of torch2trt/converters/integer_windows.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.cases import together
from tests.cases.products import FLOATS_ONLY, integers
from tests.harness import OpCase

row = functools.partial(OpCase, tensorrt=FLOATS_ONLY)


def small(*shape: int) -> torch.Tensor:
    return integers(*shape, dtype=torch.int32).long()


SEQUENCE, IMAGE, VOLUME = integers(2, 4, 7), integers(2, 4, 6, 7), integers(2, 4, 3, 5, 4)
KERNEL1, KERNEL2, KERNEL3 = small(6, 4, 3), small(6, 4, 3, 2), small(6, 4, 2, 3, 2)
UP1, UP2, UP3 = small(4, 6, 3), small(4, 6, 3, 2), small(4, 6, 2, 3, 2)
BIAS = integers(6)
BATCH = {0: {0: (1, 3)}}


def forms(function: Callable[..., Any]) -> Callable[..., Any]:
    """Plain, and with every argument."""
    changed = {"stride": 2, "padding": 1, "dilation": 2}
    if function in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
        changed |= {"output_padding": 1}
    return together(function, partial(function, **changed))


CONVOLUTIONS = [
    row("conv1d-int64", forms(F.conv1d), (SEQUENCE, KERNEL1, BIAS)),
    row("conv2d-int64", forms(F.conv2d), (IMAGE, KERNEL2)),
    row("conv3d-int64", forms(F.conv3d), (VOLUME.repeat(1, 1, 2, 1, 1), KERNEL3, BIAS)),
    row("conv2d-int32", lambda *args: F.relu(F.conv2d(*args)), (small(1, 4, 6, 7).int(), KERNEL2.int(), BIAS.int())),
    row("conv2d-int-groups", partial(F.conv2d, groups=2), (IMAGE, KERNEL2[:, :2].clone(), BIAS)),
    row("conv2d-int-weights", F.conv2d, (IMAGE, KERNEL2, BIAS), weights=(1, 2), dynamic=BATCH),
    row("conv2d-int-beyond-padding", partial(F.conv2d, stride=5, padding=(0, 1)), (IMAGE, KERNEL2)),
    row("conv_transpose1d-int64", forms(F.conv_transpose1d), (SEQUENCE, UP1, BIAS)),
    row("conv_transpose2d-int64", forms(F.conv_transpose2d), (IMAGE, UP2)),
    row("conv_transpose3d-int64", forms(F.conv_transpose3d), (VOLUME, UP3, BIAS)),
    row(
        "conv_transpose2d-int-groups",
        partial(F.conv_transpose2d, groups=2, stride=(3, 1)),
        (IMAGE, UP2, integers(12)),
        dynamic=BATCH,
    ),
    row("conv2d-int-dynamic", F.conv2d, (IMAGE, KERNEL2), dynamic={0: {2: (4, 8)}}, unsupported="a dynamic number of"),
    row(
        "conv2d-int-large",
        F.conv2d,
        (torch.ones(1, 64, 33, 33).int(), torch.ones(64, 64, 3, 3).int()),
        unsupported="sums of more than",
    ),
]


def pools(function: Callable[..., Any], *arguments: Any, **more: Any) -> Callable[..., Any]:
    """Averages in which padding counts and does not."""
    return together(
        partial(function, kernel_size=2),
        *(
            lambda x, include=include: function(x, *arguments, count_include_pad=include, **more)
            for include in (True, False)
        ),
    )


AVERAGES = [
    row("avg_pool1d-int64", pools(F.avg_pool1d, 3, 2, 1), (SEQUENCE,)),
    row("avg_pool2d-int64", pools(F.avg_pool2d, (3, 2), 2, 1, ceil_mode=True), (IMAGE,)),
    row("avg_pool3d-int64", pools(F.avg_pool3d, 2, 2, 1, ceil_mode=True), (VOLUME,)),
    row("avg_pool2d-int-divisor", partial(F.avg_pool2d, kernel_size=3, divisor_override=4), (IMAGE,), dynamic=BATCH),
    row("avg_pool2d-int-unbatched", partial(F.avg_pool2d, kernel_size=3), (IMAGE[0],)),
    row(
        "avg_pool2d-int-dynamic",
        partial(F.avg_pool2d, kernel_size=2),
        (IMAGE,),
        dynamic={0: {2: (4, 8)}},
        unsupported="a dynamic number of",
    ),
]

CASES = [*CONVOLUTIONS, *AVERAGES]
