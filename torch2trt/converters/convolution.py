"""Convolutions, and the fused block around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.activations import activate
from torch2trt.converters.plugins import plugin
from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.graph.ops import CONV_BLOCK, DEPTHWISE_CONV
from torch2trt.sizes import TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _unsupported(input: TensorSpec, weight: TensorSpec, **_: Any) -> str | None:
    channels = input.shape[1 - weight.rank]
    if not all(isinstance(size, int) for size in (channels, *weight.shape)):
        return "the channels and the window must have fixed sizes"
    return only_floats(input=input, weight=weight)


@converter(aten.convolution.default, unsupported=_unsupported)
def convolution(
    net: Network,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, ..., SymInt groups) -> Tensor"""
    if transposed:
        return net.deconvolution(
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            output_padding=output_padding,
        )
    return net.convolution(input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


# Only where TensorRT has plugins does a pass make these.
plugin(DEPTHWISE_CONV, half=True)


@converter(CONV_BLOCK, unsupported=_unsupported)
def conv_block(
    net: Network,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    alpha: float,
    beta: float,
) -> Tensor:
    """conv_block(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, ..., str activation, ...) -> Tensor"""
    result = net.convolution(input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if residual is not None:
        result = net.elementwise("SUM", result, residual)
    return activate(net, result, activation, alpha, beta)
