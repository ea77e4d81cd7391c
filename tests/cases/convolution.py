"""Rows of torch2trt/converters/convolution.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase
from torch2trt.graph.ops import ACTIVATIONS, CONV_BLOCK

SEQUENCE, IMAGE, VOLUME = normal(2, 4, 11), normal(2, 4, 9, 8), normal(1, 4, 5, 6, 7)
BIAS = normal(6, seed=1)
KERNEL1, KERNEL2, KERNEL3 = normal(6, 4, 3), normal(6, 4, 3, 2), normal(6, 4, 2, 3, 3)
DYNAMIC = {0: {0: (1, 4), 2: (4, 12), 3: (4, 9)}}


def conv(name: str, function: Callable[..., Any], x: torch.Tensor, *weights: torch.Tensor, **row: Any) -> OpCase:
    """A row whose weights are parameters."""
    return OpCase(name, function, (x, *weights), weights=range(1, 1 + len(weights)), **row)


def forms(function: Callable[..., torch.Tensor], *options: dict[str, Any]) -> Callable[..., Any]:
    return together(*(partial(function, **each) for each in options))


CONVOLUTIONS = [
    conv(
        "conv1d",
        forms(F.conv1d, {}, {"stride": 2, "padding": 1}, {"dilation": 3}, {"padding": "same"}, {"padding": "valid"}),
        *(SEQUENCE, KERNEL1, BIAS),
    ),
    conv(
        "conv2d",
        forms(
            F.conv2d,
            {},
            {"stride": (2, 1), "padding": (1, 2)},
            {"dilation": (2, 3)},
            {"padding": "same", "dilation": (1, 3)},
            {"padding": "valid", "stride": 2},
        ),
        *(IMAGE, KERNEL2, BIAS),
    ),
    conv("conv3d", forms(F.conv3d, {}, {"stride": (1, 2, 2), "padding": (0, 1, 1)}), VOLUME, KERNEL3, BIAS),
    conv("conv2d-no-bias", F.conv2d, IMAGE, KERNEL2),
    conv("conv2d-groups", partial(F.conv2d, groups=2), IMAGE, normal(6, 2, 3, 3), BIAS),
    conv("conv2d-depthwise", partial(F.conv2d, groups=4, padding=1), IMAGE, normal(8, 1, 3, 3), normal(8)),
    conv("conv1d-depthwise", partial(F.conv1d, groups=4, padding=1), SEQUENCE, normal(4, 1, 3), normal(4)),
    conv("conv3d-groups", partial(F.conv3d, groups=2), VOLUME, normal(6, 2, 2, 2, 2), BIAS),
    conv("conv2d-1x1", F.conv2d, IMAGE, normal(6, 4, 1, 1), BIAS),
    conv("conv1d-unbatched", F.conv1d, SEQUENCE[0], KERNEL1, BIAS),
    conv("conv2d-unbatched", F.conv2d, IMAGE[0], KERNEL2, BIAS),
    conv("conv3d-unbatched", F.conv3d, VOLUME[0], KERNEL3, BIAS),
    OpCase("conv2d-kernel-as-input", F.conv2d, (IMAGE, KERNEL2)),
    OpCase("conv2d-kernel-and-bias-as-inputs", F.conv2d, (IMAGE, KERNEL2, BIAS)),
    OpCase("conv2d-bias-as-input", F.conv2d, (IMAGE, KERNEL2, BIAS), weights=(1,)),
    OpCase("conv1d-kernel-as-input", F.conv1d, (SEQUENCE, KERNEL1, BIAS), weights=(2,)),
    conv("conv2d-computed-kernel", lambda x, w: F.conv2d(x, w - w.mean((1, 2, 3), keepdim=True)), IMAGE, KERNEL2),
    conv("conv1d-dynamic", F.conv1d, SEQUENCE, KERNEL1, BIAS, dynamic={0: {0: (1, 4), 2: (4, 12)}}),
    conv("conv2d-dynamic", partial(F.conv2d, stride=2, padding=1), IMAGE, KERNEL2, BIAS, dynamic=DYNAMIC),
    conv("conv3d-dynamic", F.conv3d, VOLUME, KERNEL3, BIAS, dynamic={0: {0: (1, 3), 4: (4, 8)}}),
    conv("conv2d-dynamic-same", partial(F.conv2d, padding="same"), IMAGE, KERNEL2, dynamic=DYNAMIC),
    conv("conv2d-dynamic-unbatched", F.conv2d, IMAGE[0], KERNEL2, BIAS, dynamic={0: {1: (4, 12)}}),
    *(
        conv(
            f"conv{rank}d-{str(dtype)[6:]}",
            function,
            *(each.to(dtype) for each in (x, kernel, BIAS)),
        )
        for dtype in (torch.float16, torch.bfloat16)
        for rank, function, x, kernel in (
            (1, F.conv1d, SEQUENCE, KERNEL1),
            (2, F.conv2d, IMAGE, KERNEL2),
            (3, F.conv3d, VOLUME, KERNEL3),
        )
    ),
    OpCase(
        "conv2d-int",
        F.conv2d,
        tuple(torch.arange(count).reshape(shape).int() for count, shape in ((16, (1, 1, 4, 4)), (4, (1, 1, 2, 2)))),
        unsupported="int32",
    ),
]

UP1, UP2, UP3 = normal(4, 6, 3), normal(4, 6, 3, 2), normal(4, 6, 2, 3, 3)
TRANSPOSED = [
    conv(
        "conv_transpose1d",
        forms(F.conv_transpose1d, {}, {"stride": 3, "padding": 1, "output_padding": 2}, {"dilation": 2}),
        *(SEQUENCE, UP1, BIAS),
    ),
    conv(
        "conv_transpose2d",
        forms(
            F.conv_transpose2d,
            {},
            {"stride": (2, 3), "padding": (1, 0)},
            {"stride": 2, "padding": 1, "output_padding": 1},
            # more than the padding, so that there is something outside of every window
            {"stride": (4, 3), "output_padding": (3, 2)},
            {"dilation": (2, 4), "padding": 1, "output_padding": (1, 3)},
        ),
        *(IMAGE, UP2, BIAS),
    ),
    conv(
        "conv_transpose3d",
        forms(F.conv_transpose3d, {}, {"stride": 2, "padding": 1, "output_padding": (1, 0, 1)}),
        *(VOLUME, UP3, BIAS),
    ),
    conv(
        "conv_transpose2d-strided-and-dilated",
        partial(F.conv_transpose2d, stride=2, dilation=2),
        *(IMAGE, UP2),
        unsupported="both strided and dilated",
    ),
    conv("conv_transpose2d-no-bias", partial(F.conv_transpose2d, stride=2), IMAGE, UP2),
    conv("conv_transpose2d-groups", partial(F.conv_transpose2d, stride=2, groups=2), IMAGE, normal(4, 3, 3, 3), BIAS),
    conv("conv_transpose2d-depthwise", partial(F.conv_transpose2d, groups=4), IMAGE, normal(4, 1, 3, 3), normal(4)),
    conv("conv_transpose2d-unbatched", partial(F.conv_transpose2d, stride=2, output_padding=1), IMAGE[0], UP2, BIAS),
    OpCase("conv_transpose2d-kernel-as-input", F.conv_transpose2d, (IMAGE, UP2, BIAS, 2)),
    conv(
        "conv_transpose2d-dynamic",
        forms(F.conv_transpose2d, {"stride": 2, "padding": 1}, {"stride": 2, "output_padding": 1}),
        *(IMAGE, UP2, BIAS),
        dynamic=DYNAMIC,
    ),
    conv("conv_transpose1d-dynamic", partial(F.conv_transpose1d, stride=2), SEQUENCE, UP1, dynamic={0: {2: (4, 12)}}),
    *(
        conv(
            f"conv_transpose{rank}d-{str(dtype)[6:]}",
            partial(function, stride=2),
            *(each.to(dtype) for each in (x, kernel, BIAS)),
        )
        for dtype in (torch.float16, torch.bfloat16)
        for rank, function, x, kernel in ((1, F.conv_transpose1d, SEQUENCE, UP1), (2, F.conv_transpose2d, IMAGE, UP2))
    ),
]


def blocks(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, activation: str) -> Any:
    """The same block with and without a residual."""
    alpha, beta = {"clip": (-0.5, 0.8), "leaky_relu": (0.2, 0.0)}.get(activation, (0.0, 0.0))
    return tuple(
        CONV_BLOCK(x, weight, bias, added, [2, 1], [1, 0], [1, 1], 1, activation, alpha, beta)
        for added in (None, residual)
    )


BLOCKS = [
    *(
        OpCase(
            f"conv_block-{activation}", blocks, (IMAGE, KERNEL2, BIAS, normal(2, 6, 5, 7), activation), weights=(1, 2)
        )
        for activation in ACTIVATIONS
    ),
    *(
        OpCase(
            f"conv_block-{activation}-float16",
            blocks,
            (*(each.half() for each in (IMAGE, KERNEL2, BIAS, normal(2, 6, 5, 7))), activation),
            weights=(1, 2),
        )
        for activation in ("relu", "silu", "gelu")
    ),
    conv(
        "conv_block-fused",
        lambda x, w, b: F.relu(F.conv2d(x, w, b, padding=1) + x),
        *(IMAGE, normal(4, 4, 3, 3), normal(4)),
        dynamic=DYNAMIC,
    ),
]

CASES = [*CONVOLUTIONS, *TRANSPOSED, *BLOCKS]
