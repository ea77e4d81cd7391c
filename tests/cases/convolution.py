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


def each(*functions: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """One function for each list of arguments."""
    return lambda *arguments: tuple(function(*given) for function, given in zip(functions, arguments, strict=True))


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
    *(
        conv(
            f"conv2d-groups-{str(dtype)[6:]}",
            forms(partial(F.conv2d, groups=2), {}, {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)}),
            *(part.to(dtype) for part in (IMAGE, normal(6, 2, 3, 3), BIAS)),
        )
        for dtype in (torch.float16, torch.bfloat16)
    ),
    *(
        conv(
            f"conv2d-groups-{name}-float16",
            partial(F.conv2d, groups=2, padding=1),
            *(part.half() for part in (normal(2, channels, 9, 8), kernel)),
        )
        for name, channels, kernel in (
            ("of-four", 8, normal(8, 4, 3, 3)),
            ("of-eight", 16, normal(16, 8, 3, 3)),
            ("of-one", 2, normal(2, 1, 3, 3)),
        )
    ),
    conv("conv2d-1x1", F.conv2d, IMAGE, normal(6, 4, 1, 1), BIAS),
    OpCase(
        "convolutions-unbatched",
        each(F.conv1d, F.conv2d, F.conv3d),
        ((SEQUENCE[0], KERNEL1, BIAS), (IMAGE[0], KERNEL2, BIAS), (VOLUME[0], KERNEL3, BIAS)),
    ),
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
        OpCase(
            f"convolutions-{str(dtype)[6:]}",
            each(F.conv1d, F.conv2d, F.conv3d),
            [
                [part.to(dtype) for part in parts]
                for parts in ((SEQUENCE, KERNEL1), (IMAGE, KERNEL2), (VOLUME, KERNEL3))
            ],
        )
        for dtype in (torch.float16, torch.bfloat16)
    ),
    *(
        conv(f"conv2d-{str(dtype)[6:]}", F.conv2d, IMAGE.to(dtype), KERNEL2.to(dtype), BIAS.to(dtype))
        for dtype in (torch.float16, torch.bfloat16)
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
        forms(
            F.conv_transpose2d,
            {"stride": 2, "dilation": 2},
            {"stride": (2, 1), "dilation": (1, 3), "padding": 1, "output_padding": (1, 0)},
        ),
        *(IMAGE, UP2, BIAS),
    ),
    conv("conv_transpose1d-strided-and-dilated", partial(F.conv_transpose1d, stride=3, dilation=2), SEQUENCE, UP1),
    OpCase(
        "conv_transpose2d-kernel-as-input-strided-and-dilated",
        partial(F.conv_transpose2d, stride=2, dilation=2),
        (IMAGE, UP2),
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
        conv(f"conv_transpose2d-{str(dtype)[6:]}", F.conv_transpose2d, IMAGE.to(dtype), UP2.to(dtype), BIAS.to(dtype))
        for dtype in (torch.float16, torch.bfloat16)
    ),
]


def blocks(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> Any:
    """Every activation, with and without a residual."""
    bounds = {"clip": (-0.5, 0.8), "leaky_relu": (0.2, 0.0)}
    return tuple(
        CONV_BLOCK(x, weight, bias, added, [2, 1], [1, 0], [1, 1], 1, activation, *bounds.get(activation, (0.0, 0.0)))
        for activation in ACTIVATIONS
        for added in (None, residual)
    )


BLOCKS = [
    *(
        conv(
            f"conv_block-{str(dtype)[6:]}",
            blocks,
            *(part.to(dtype) for part in (IMAGE, KERNEL2, BIAS, normal(2, 6, 5, 7))),
        )
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
    conv(
        "conv_block-fused",
        lambda x, w, b: F.relu(F.conv2d(x, w, b, padding=1) + x),
        *(IMAGE, normal(4, 4, 3, 3), normal(4)),
        dynamic=DYNAMIC,
    ),
]

CASES = [*CONVOLUTIONS, *TRANSPOSED, *BLOCKS]
