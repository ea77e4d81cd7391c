"""Normalisation of dimensions and of groups of channels; the statistics are float32 whatever the dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.sizes import TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _along(net: Network, weight: Tensor | None, neutral: float, like: Tensor, axis: int) -> Tensor:
    """A weight whose dimensions are those of another tensor from an axis on; a missing one is neutral."""
    if weight is None:
        return net.constant(torch.full((1,) * like.rank, neutral, dtype=like.dtype))
    behind = like.rank - axis - weight.rank
    return net.cast(net.reshape(weight, (*(1,) * axis, *weight.shape, *(1,) * behind)), like.dtype)


@converter(aten.layer_norm.default, unsupported=only_floats)
def layer_norm(
    net: Network,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    **_: Any,
) -> Tensor:
    """layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, ...) -> Tensor"""
    axis = input.rank - len(normalized_shape)
    scale, shift = _along(net, weight, 1, input, axis), _along(net, bias, 0, input, axis)
    return net.normalization(input, scale, shift, range(axis, input.rank), eps)


@converter(aten.group_norm.default, unsupported=only_floats)
def group_norm(
    net: Network, input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, **_: Any
) -> Tensor:
    """group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, ...) -> Tensor"""
    if input.rank == 2:
        # TensorRT wants a spatial dimension.
        return net.squeeze(group_norm(net, net.unsqueeze(input, 2), num_groups, weight, bias, eps), 2)
    if num_groups == 1:
        # The layer takes one group for none.
        scale, shift = _along(net, weight, 1, input, 1), _along(net, bias, 0, input, 1)
        return net.normalization(input, scale, shift, range(1, input.rank), eps)
    result = net.group_normalization(input, num_groups, eps)
    if weight is not None:
        result = net.elementwise("PROD", result, _along(net, weight, 1, input, 1))
    if bias is not None:
        result = net.elementwise("SUM", result, _along(net, bias, 0, input, 1))
    return result


def _instance_unsupported(input: TensorSpec, use_input_stats: bool, **arguments: Any) -> str | None:
    if not use_input_stats and arguments["running_mean"] is None:
        return "neither the input's statistics nor running ones"
    return only_floats(input=input)


@converter(aten.instance_norm.default, unsupported=_instance_unsupported)
def instance_norm(
    net: Network,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    eps: float,
    **_: Any,
) -> Tensor:
    """instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, ...) -> Tensor"""
    if use_input_stats:
        scale, shift = _along(net, weight, 1, input, 1), _along(net, bias, 0, input, 1)
        return net.normalization(input, scale, shift, range(2, input.rank), eps)
    wide = net.cast(input, torch.float32)
    mean, variance, scale, shift = (
        _along(net, operand, neutral, wide, 1)
        for operand, neutral in ((running_mean, 0), (running_var, 1), (weight, 1), (bias, 0))
    )
    normal = net.elementwise("DIV", net.elementwise("SUB", wide, mean), _root(net, variance, eps))
    return net.cast(net.elementwise("SUM", net.elementwise("PROD", normal, scale), shift), input.dtype)


@converter(aten.rms_norm.default, unsupported=only_floats)
def rms_norm(
    net: Network, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> Tensor:
    """rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor"""
    axis = input.rank - len(normalized_shape)
    wide = net.cast(input, torch.float32)
    squares = net.reduce("AVG", net.elementwise("PROD", wide, wide), range(axis, input.rank), keep_dims=True)
    # Without an eps torch takes that of float32, in which it computes.
    result = net.elementwise("DIV", wide, _root(net, squares, torch.finfo(torch.float32).eps if eps is None else eps))
    if weight is not None:
        result = net.elementwise("PROD", result, _along(net, weight, 1, wide, axis))
    return net.cast(result, input.dtype)


def _root(net: Network, variance: Tensor, eps: float) -> Tensor:
    return net.unary("SQRT", net.binary("SUM", variance, eps))
