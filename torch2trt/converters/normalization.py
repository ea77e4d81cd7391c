"""Normalisation of dimensions and of groups of channels; the statistics are float32 whatever the dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.plugins import plugin
from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.graph.plugged_ops import GROUP_NORM
from torch2trt.sizes import Size, TensorSpec, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _place(net: Network, weight: Tensor, like: Tensor, axis: int) -> Tensor:
    """A weight whose dimensions are those of another tensor from an axis on, in its rank and dtype."""
    behind = like.rank - axis - weight.rank
    return net.cast(net.reshape(weight, (*(1,) * axis, *weight.shape, *(1,) * behind)), like.dtype)


def _affine(
    net: Network, weight: Tensor | None, bias: Tensor | None, like: Tensor, axis: int, shape: Sequence[Size] = ()
) -> tuple[Tensor, Tensor]:
    """Scale and shift, which TensorRT wants of one shape: a missing one is neutral, of the other's shape or of this."""
    shape = next((operand.shape for operand in (weight, bias) if operand is not None), shape)
    scale, shift = (
        net.constant(torch.full(shape, neutral, dtype=like.dtype)) if operand is None else operand
        for operand, neutral in ((weight, 1.0), (bias, 0.0))
    )
    return _place(net, scale, like, axis), _place(net, shift, like, axis)


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
    scale, shift = _affine(net, weight, bias, input, axis)
    if math.prod(normalized_shape) == 1:
        # Nothing but the shift is left, and a variance that is rounded to less than zero has no root.
        centred = net.elementwise("SUB", input, input)
        return net.elementwise("SUM", net.elementwise("PROD", centred, scale), shift)
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
        scale, shift = _affine(net, weight, bias, input, 1)
        return net.normalization(input, scale, shift, range(1, input.rank), eps)
    result = net.group_normalization(input, num_groups, eps)
    if weight is not None:
        result = net.elementwise("PROD", result, _place(net, weight, input, 1))
    if bias is not None:
        result = net.elementwise("SUM", result, _place(net, bias, input, 1))
    return result


# Only where TensorRT has plugins does a pass make these.
plugin(GROUP_NORM, half=True, channels_last=True)


# -- with their statistics ---------------------------------------------------------------------------------------------


def _moments(net: Network, wide: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance over dimensions, which stay with size 1."""
    mean = net.reduce("AVG", wide, axes, keep_dims=True)
    distance = net.elementwise("SUB", wide, mean)
    return mean, net.reduce("AVG", net.elementwise("PROD", distance, distance), axes, keep_dims=True)


def _in_result_dtypes(net: Network, *found: Tensor | None) -> tuple[Tensor | None, ...]:
    """A call's results in the shapes and dtypes that the graph has; None for those that nothing reads."""
    return tuple(
        None if each is None or spec is None else net.cast(net.reshape(each, spec.shape), spec.dtype)
        for each, spec in zip(found, net.results, strict=True)
    )


def _beside(net: Network, result: Tensor, input: Tensor, axes: Sequence[int], eps: float) -> tuple[Tensor | None, ...]:
    """A normalised tensor, the means, and what the distances from them were multiplied by, if someone reads these."""
    if not net.used & {1, 2}:
        return result, None, None
    mean, variance = _moments(net, net.cast(input, torch.float32), axes)
    return _in_result_dtypes(net, result, mean, net.unary("RECIP", _root(net, variance, eps)))


@converter(aten.native_layer_norm.default, unsupported=only_floats)
def native_layer_norm(
    net: Network, input: Tensor, normalized_shape: Sequence[int], eps: float, **arguments: Any
) -> tuple[Tensor | None, ...]:
    """native_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, ...) -> (Tensor, Tensor, Tensor)"""
    result = layer_norm(net, input, normalized_shape, eps=eps, **arguments)
    return _beside(net, result, input, range(input.rank - len(normalized_shape), input.rank), eps)


@converter(aten.native_group_norm.default, unsupported=only_floats)
def native_group_norm(
    net: Network, input: Tensor, group: int, weight: Tensor | None, bias: Tensor | None, eps: float, **_: Any
) -> tuple[Tensor | None, ...]:
    """native_group_norm(Tensor input, Tensor? weight, Tensor? bias, SymInt N, ...) -> (Tensor, Tensor, Tensor)"""
    result = group_norm(net, input, group, weight, bias, eps)
    channels = input.shape[1]
    assert isinstance(channels, int)
    groups = net.reshape(input, (input.shape[0], group, volume((channels // group, *input.shape[2:]))))
    return _beside(net, result, groups, [2], eps)


def _batch_unsupported(
    input: TensorSpec,
    training: bool,
    used: set[int],
    results: Sequence[TensorSpec],
    running_mean: TensorSpec | None = None,
    **_: Any,
) -> str | None:
    # On the CPU they are empty, elsewhere torch and its traces differ.
    if not training and running_mean is not None and any(results[index].shape != (0,) for index in used & {1, 2}):
        return "the statistics of a batch, which there are in training alone"
    return only_floats(input=input)


@converter(
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default,
    unsupported=_batch_unsupported,
)
def native_batch_norm(
    net: Network,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """_native_batch_norm_legit_functional(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, ...)"""
    wide = net.cast(input, torch.float32)
    running = [_place(net, each, wide, 1) for each in (running_mean, running_var) if each is not None]
    batch: tuple[Tensor | None, ...] = (None, None)
    if training or not running:
        mean, variance = _moments(net, wide, [axis for axis in range(input.rank) if axis != 1])
        inverse = net.unary("RECIP", _root(net, variance, eps))
        batch = mean, inverse
        # What is kept for later is the variance of what the batch is a sample of.
        count = net.tensor(volume((input.shape[0], *input.shape[2:])), torch.float32)
        unbiased = net.elementwise("DIV", net.elementwise("PROD", variance, count), net.binary("SUB", count, 1.0))
        running = [
            net.elementwise("SUM", net.binary("PROD", old, 1 - momentum), net.binary("PROD", new, momentum))
            for old, new in zip(running, (mean, unbiased), strict=False)
        ]
    else:
        mean, variance = running
        inverse = net.unary("RECIP", _root(net, variance, eps))
        batch = (net.expand(net.tensor(0, torch.float32), (0,)),) * 2
    result = net.elementwise("PROD", net.elementwise("SUB", wide, mean), inverse)
    if weight is not None:
        result = net.elementwise("PROD", result, _place(net, weight, wide, 1))
    if bias is not None:
        result = net.elementwise("SUM", result, _place(net, bias, wide, 1))
    return _in_result_dtypes(net, result, *batch, *running)


def _instance_unsupported(input: TensorSpec, use_input_stats: bool, **_: Any) -> str | None:
    if use_input_stats and not isinstance(input.shape[1], int):
        return "the number of channels must be fixed"
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
        scale, shift = _affine(net, weight, bias, input, 1, input.shape[1:2])
        return net.normalization(input, scale, shift, range(2, input.rank), eps)
    assert running_mean is not None
    assert running_var is not None
    wide = net.cast(input, torch.float32)
    result = net.elementwise("SUB", wide, _place(net, running_mean, wide, 1))
    result = net.elementwise("DIV", result, _root(net, _place(net, running_var, wide, 1), eps))
    scale, shift = _affine(net, weight, bias, wide, 1)
    return net.cast(net.elementwise("SUM", net.elementwise("PROD", result, scale), shift), input.dtype)


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
        result = net.elementwise("PROD", result, _place(net, weight, wide, axis))
    return net.cast(result, input.dtype)


def _root(net: Network, variance: Tensor, eps: float) -> Tensor:
    return net.unary("SQRT", net.binary("SUM", variance, eps))
