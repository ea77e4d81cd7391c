"""Convolutions, and the fused block around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch2trt.converters.activations import activate
from torch2trt.converters.integer_windows import integer_convolution, transposed_convolution
from torch2trt.converters.plugins import plugin
from torch2trt.converters.reasons import only_floats, products
from torch2trt.converters.registry import converter
from torch2trt.converters.windows import lanes_of
from torch2trt.graph.ops import CONV_BLOCK
from torch2trt.graph.plugged_ops import DEPTHWISE_CONV
from torch2trt.sizes import DimRange, TensorSpec, volume
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.shaping import is_static
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _block_unsupported(input: TensorSpec, weight: TensorSpec, **_: Any) -> str | None:
    channels = input.shape[1 - weight.rank]
    if not is_static([channels, *weight.shape]):
        return "the channels and the window must have fixed sizes"
    return only_floats(input=input, weight=weight)


def _unsupported(
    input: TensorSpec,
    weight: TensorSpec,
    transposed: bool,
    flavour: Flavour,
    ranges: Mapping[str, DimRange],
    results: Sequence[TensorSpec],
    **_: Any,
) -> str | None:
    reason = _block_unsupported(input, weight)
    if reason is None or input.dtype in FLOAT_DTYPES or not is_static(weight.shape):
        return reason
    if not is_static(input.shape[1:]):
        return "windows over a dynamic number of integers"
    count = volume([*(input if transposed else results[0]).shape, *weight.shape[1:]])
    return products(count, (input, weight), flavour, ranges)


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
    if input.dtype not in FLOAT_DTYPES:
        lanes = lanes_of(weight.rank - 2, weight.shape[2:], stride, padding, dilation)
        convolve = transposed_convolution if transposed else integer_convolution
        result = convolve(net, input, weight, lanes, net.result.shape[2:], groups)
        if bias is None:
            return result
        return net.elementwise("SUM", result, net.reshape(bias, (bias.shape[0], *[1] * len(lanes))))
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


@converter(CONV_BLOCK, unsupported=_block_unsupported)
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
