"""Convolution, deconvolution and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bare_network import BareNetwork, first, trt
from tests.layers.row import READABLE_FLOATS, Row, add, in_tensorrt_10, normal


def pad(x: Tensor, *amounts: int, value: float = 0.0) -> Tensor:
    return F.pad(x, amounts, value=value)


def conv(
    name: str, x: Tensor, kernel: Tensor, truth: Any, *, deconv: bool = False, refused: str = "", **attributes: Any
) -> Row:
    groups = attributes.get("num_groups", 1)
    maps = kernel.shape[1] * groups if deconv else kernel.shape[0]
    bias = normal(maps, seed=5)

    def build(net: BareNetwork, x: Any, *weights: Any) -> Any:
        method = getattr(net.definition, f"add_{'deconvolution' if deconv else 'convolution'}_nd")
        held = [None, None] if weights else [kernel.to(net.dtype), bias.to(net.dtype)]
        layer = method(x, maps, tuple(kernel.shape[2:]), *(net.weights(w) for w in held))
        for i, tensor in enumerate(weights, start=1):
            layer.set_input(i, tensor)
        for attribute, value in attributes.items():
            setattr(layer, attribute, value)
        return first(layer)

    if name.endswith("input"):
        return Row(name, build, (x, kernel, bias), truth)
    return Row(
        name,
        build,
        (x,),
        lambda x: truth(x, kernel.double(), bias.double()),
        floats=READABLE_FLOATS,
        refused=refused,
        refused_in=(torch.float16,),
    )


IMAGE, VOLUME = normal(2, 4, 9, 8), normal(2, 4, 5, 6, 7)
UP, SAME_UPPER, SAME_LOWER = (
    getattr(trt.PaddingMode, name) for name in ("EXPLICIT_ROUND_UP", "SAME_UPPER", "SAME_LOWER")
)
CONVOLUTIONS = [
    conv("conv2d", IMAGE, normal(6, 4, 3, 2), F.conv2d),
    conv("conv2d-kernel-as-input", IMAGE, normal(6, 4, 3, 2), F.conv2d),
    conv(
        "conv2d-groups",
        IMAGE,
        normal(6, 2, 3, 3),
        lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 2), (2, 1), 2),
        refused=in_tensorrt_10("it has no kernel for such groups in FP16; the network builder makes them FP32"),
        num_groups=2,
        stride_nd=(2, 1),
        padding_nd=(1, 2),
        dilation_nd=(2, 1),
    ),
    conv(
        "conv2d-asymmetric",
        IMAGE,
        normal(6, 4, 3, 3),
        lambda x, w, b: F.conv2d(pad(x, 0, 3, 1, 2), w, b),
        pre_padding=(1, 0),
        post_padding=(2, 3),
    ),
    conv(
        "conv2d-round-up",
        IMAGE,
        normal(6, 4, 3, 3),
        lambda x, w, b: F.conv2d(pad(x, 0, 1, 0, 0), w, b, 2),
        stride_nd=(2, 2),
        padding_mode=UP,
    ),
    conv(
        "conv2d-same-upper",
        IMAGE,
        normal(6, 4, 4, 3),
        lambda x, w, b: F.conv2d(pad(x, 0, 1, 1, 2), w, b, 2),
        stride_nd=(2, 2),
        padding_mode=SAME_UPPER,
    ),
    conv(
        "conv2d-same-lower",
        IMAGE,
        normal(6, 4, 4, 3),
        lambda x, w, b: F.conv2d(pad(x, 1, 0, 2, 1), w, b, 2),
        stride_nd=(2, 2),
        padding_mode=SAME_LOWER,
    ),
    conv(
        "conv2d-same-with-small-kernel",
        normal(1, 4, 6, 6),
        normal(6, 4, 1, 1),
        lambda x, w, b: F.conv2d(x, w, b, 2),
        stride_nd=(2, 2),
        padding_mode=SAME_UPPER,
    ),
    conv(
        "conv3d",
        VOLUME,
        normal(6, 4, 2, 3, 3),
        lambda x, w, b: F.conv3d(x, w, b, (1, 2, 1), (0, 1, 1)),
        stride_nd=(1, 2, 1),
        padding_nd=(0, 1, 1),
    ),
    conv("deconv2d", IMAGE, normal(4, 5, 3, 2), F.conv_transpose2d, deconv=True),
    conv("deconv2d-kernel-as-input", IMAGE, normal(4, 5, 3, 2), F.conv_transpose2d, deconv=True),
    conv(
        "deconv2d-groups",
        IMAGE,
        normal(4, 3, 3, 3),
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 0, 2),
        deconv=True,
        num_groups=2,
        stride_nd=(2, 2),
        padding_nd=(1, 1),
    ),
    conv(
        "deconv2d-asymmetric",
        IMAGE,
        normal(4, 5, 3, 3),
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2)[:, :, 1:, 0:-1],
        deconv=True,
        stride_nd=(2, 2),
        pre_padding=(1, 0),
        post_padding=(0, 1),
    ),
    conv(
        "deconv2d-same-upper",
        IMAGE,
        normal(4, 5, 4, 3),
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2)[:, :, 1:-1, :-1],
        deconv=True,
        stride_nd=(2, 2),
        padding_mode=SAME_UPPER,
    ),
    conv(
        "deconv3d",
        VOLUME,
        normal(4, 3, 2, 3, 3),
        lambda x, w, b: F.conv_transpose3d(x, w, b, 2, (0, 1, 1)),
        deconv=True,
        stride_nd=(2, 2, 2),
        padding_nd=(0, 1, 1),
    ),
]


def pool(kind: str, window: Sequence[int], **attributes: Any) -> Callable[..., Any]:
    return add("pooling_nd", getattr(trt.PoolingType, kind), tuple(window), **attributes)


INF = math.inf
POOLINGS = [
    Row("pool-max", pool("MAX", (3, 2)), (IMAGE,), lambda x: F.max_pool2d(x, (3, 2), 1)),
    Row(
        "pool-max-round-up",
        pool("MAX", (3, 3), stride_nd=(2, 2), padding_nd=(1, 1), padding_mode=UP),
        (IMAGE,),
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    Row(
        "pool-max-same-lower",
        pool("MAX", (3, 3), stride_nd=(2, 2), padding_mode=SAME_LOWER),
        (normal(1, 2, 6, 6),),
        lambda x: F.max_pool2d(pad(x, 1, 0, 1, 0, value=-INF), 3, 2),
    ),
    Row(
        "pool-average-excluding-padding",
        pool("AVERAGE", (3, 3), stride_nd=(2, 1), padding_nd=(1, 1)),
        (IMAGE,),
        lambda x: F.avg_pool2d(x, 3, (2, 1), 1, count_include_pad=False),
    ),
    Row(
        "pool-average-including-padding",
        pool("AVERAGE", (3, 3), stride_nd=(2, 1), padding_nd=(1, 1), average_count_excludes_padding=False),
        (IMAGE,),
        lambda x: F.avg_pool2d(x, 3, (2, 1), 1, count_include_pad=True),
    ),
    Row(
        "pool-average-round-up",
        pool(
            "AVERAGE",
            (3, 3),
            stride_nd=(2, 2),
            padding_nd=(1, 1),
            padding_mode=UP,
            average_count_excludes_padding=False,
        ),
        (IMAGE,),
        lambda x: F.avg_pool2d(pad(x, 1, 2, 1, 1), 3, 2),
    ),
    Row(
        "pool-average-round-up-excluding-padding",
        pool("AVERAGE", (3, 3), stride_nd=(2, 2), padding_nd=(1, 1), padding_mode=UP),
        (IMAGE,),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    Row(
        "pool-blend",
        pool("MAX_AVERAGE_BLEND", (2, 2), stride_nd=(2, 2), blend_factor=0.25),
        (normal(2, 4, 8, 8),),
        lambda x: 0.75 * F.max_pool2d(x, 2) + 0.25 * F.avg_pool2d(x, 2),
    ),
    Row(
        "pool-max-3d",
        pool("MAX", (2, 3, 2), stride_nd=(1, 2, 2)),
        (VOLUME,),
        lambda x: F.max_pool3d(x, (2, 3, 2), (1, 2, 2)),
    ),
    Row(
        "pool-average-3d",
        pool("AVERAGE", (3, 3, 3), padding_nd=(1, 1, 1)),
        (VOLUME,),
        lambda x: F.avg_pool3d(x, 3, 1, 1, count_include_pad=False),
    ),
    Row("pool-2d-of-5d", pool("AVERAGE", (2, 2)), (VOLUME,), lambda x: F.avg_pool3d(x, (1, 2, 2), 1)),
]

ROWS = [*CONVOLUTIONS, *POOLINGS]
