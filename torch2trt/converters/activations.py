"""Activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def activate(net: Network, tensor: Tensor, kind: str, alpha: float = 0.0, beta: float = 0.0) -> Tensor:
    """An activation by its name in :data:`torch2trt.graph.ops.ACTIVATIONS`."""
    match kind:
        case "none":
            return tensor
        case "relu":
            return net.activation("RELU", tensor)
        case "clip":
            return net.activation("CLIP", tensor, alpha, beta)
        case "leaky_relu":
            return net.activation("LEAKY_RELU", tensor, alpha)
        case "sigmoid":
            return net.activation("SIGMOID", tensor)
        case "hardsigmoid":
            return net.activation("HARD_SIGMOID", tensor, 1 / 6, 0.5)
        case "hardswish":
            return net.elementwise("PROD", tensor, net.activation("HARD_SIGMOID", tensor, 1 / 6, 0.5))
        case "silu":
            return net.elementwise("PROD", tensor, net.activation("SIGMOID", tensor))
        case "gelu":
            return net.activation("GELU_ERF", tensor)
        case "gelu_tanh":
            return net.activation("GELU_TANH", tensor)
        case "tanh":
            return net.activation("TANH", tensor)
    raise ValueError(f"no activation {kind!r}")


def _named(kind: str) -> Callable[..., Tensor]:
    def activation(net: Network, input: Tensor) -> Tensor:
        return activate(net, input, kind)

    return activation


for _name in ("sigmoid", "hardsigmoid", "hardswish", "silu", "tanh"):
    converter(getattr(aten, _name).default)(_named(_name))


@converter(aten.gelu.default)
def gelu(net: Network, input: Tensor, approximate: str) -> Tensor:
    """gelu(Tensor self, *, str approximate='none') -> Tensor"""
    return activate(net, input, "gelu" if approximate == "none" else "gelu_tanh")


# -- clamps ------------------------------------------------------------------------------------------------------------


def _is_finite(bound: Any) -> bool:
    return isinstance(bound, int | float) and math.isfinite(bound)


@converter(aten.clamp.default, aten.clamp.Tensor)
def clamp(net: Network, input: Tensor, min: Any, max: Any) -> Tensor:
    """clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor"""
    if input.dtype.is_floating_point:
        # One layer, which TensorRT fuses into a convolution before it.
        if _is_finite(min) and _is_finite(max) and min <= max:
            return activate(net, input, "clip", min, max)
        if max is None and _is_finite(min) and min == 0:
            return activate(net, input, "relu")
    for operation, bound in (("MAX", min), ("MIN", max)):
        if bound is not None:
            input = net.binary(operation, input, bound)
    return input


@converter(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min(net: Network, input: Tensor, min: Any) -> Tensor:
    """clamp_min(Tensor self, Scalar min) -> Tensor"""
    return clamp(net, input, min, None)


@converter(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(net: Network, input: Tensor, max: Any) -> Tensor:
    """clamp_max(Tensor self, Scalar max) -> Tensor"""
    return clamp(net, input, None, max)


@converter(aten.relu.default)
def relu(net: Network, input: Tensor) -> Tensor:
    """relu(Tensor self) -> Tensor"""
    return clamp(net, input, 0, None)


@converter(aten.relu6.default)
def relu6(net: Network, input: Tensor) -> Tensor:
    """relu6(Tensor self) -> Tensor"""
    return clamp(net, input, 0, 6)


@converter(aten.hardtanh.default)
def hardtanh(net: Network, input: Tensor, min_val: float, max_val: float) -> Tensor:
    """hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor"""
    if not input.dtype.is_floating_point:
        min_val, max_val = int(min_val), int(max_val)  # as torch does: the result is of integers too
    return clamp(net, input, min_val, max_val)


# -- slopes and exponentials below zero --------------------------------------------------------------------------------


@converter(aten.leaky_relu.default)
def leaky_relu(net: Network, input: Tensor, negative_slope: float) -> Tensor:
    """leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor"""
    return activate(net, input, "leaky_relu", negative_slope)


@converter(aten.rrelu.default)
def rrelu(net: Network, input: Tensor, lower: float, upper: float, **_: Any) -> Tensor:
    """rrelu(Tensor self, Scalar lower=0.125, Scalar upper=0.3333333333333333, bool training=False, ...) -> Tensor"""
    return activate(net, input, "leaky_relu", (lower + upper) / 2)


@converter(aten.prelu.default, aten._prelu_kernel.default)
def prelu(net: Network, input: Tensor, weight: Tensor) -> Tensor:
    """prelu(Tensor self, Tensor weight) -> Tensor"""
    if input.rank == 0:
        return net.reshape(prelu(net, net.reshape(input, (1,)), weight), ())
    if weight.rank != input.rank:
        # One slope for all, or one a channel, which is the second dimension.
        shape = [1] * input.rank
        shape[min(1, input.rank - 1)] = weight.shape[0] if weight.rank else 1
        weight = net.reshape(weight, shape)
    layer = net.add("add_parametric_relu", input.itensor, weight.itensor)
    return net.output_of(layer, input.shape)


@converter(aten.elu.default)
def elu(net: Network, input: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    """elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor"""
    if input_scale == 1:
        result = net.activation("ELU", input, alpha)
    else:
        # The layer does not scale what goes into the exponential: each side of zero by itself.
        negative = net.binary("PROD", net.binary("MIN", input, 0.0), input_scale)
        result = net.elementwise("SUM", net.activation("RELU", input), net.activation("ELU", negative, alpha))
    return result if scale == 1 else net.binary("PROD", result, scale)


@converter(aten.celu.default)
def celu(net: Network, input: Tensor, alpha: float) -> Tensor:
    """celu(Tensor self, Scalar alpha=1.0) -> Tensor"""
    return elu(net, input, alpha, 1.0, 1 / alpha)


@converter(aten.selu.default)
def selu(net: Network, input: Tensor) -> Tensor:
    """selu(Tensor self) -> Tensor"""
    return net.activation("SELU", input, 1.6732632423543772, 1.0507009873554805)


# -- logarithms of exponentials, in float32 ----------------------------------------------------------------------------


def log_one_plus_exp(net: Network, wide: Tensor) -> Tensor:
    """log(1 + exp(x)) as max(x, 0) + log(1 + y), y = exp(-|x|), which cannot overflow.

    The logarithm is 2 artanh(y / (y + 2)), because 1 + y would drop most of a small y.
    """
    decayed = net.unary("EXP", net.unary("NEG", net.unary("ABS", wide)))
    ratio = net.elementwise("DIV", decayed, net.binary("SUM", decayed, 2.0))
    return net.elementwise("SUM", net.activation("RELU", wide), net.binary("PROD", net.unary("ATANH", ratio), 2.0))


@converter(aten.softplus.default)
def softplus(net: Network, input: Tensor, beta: float, threshold: float) -> Tensor:
    """softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor"""
    wide = net.cast(input, torch.float32)
    scaled = wide if beta == 1 else net.binary("PROD", wide, beta)
    result = log_one_plus_exp(net, scaled)
    if beta != 1:
        result = net.binary("DIV", result, beta)
    if threshold < 20:
        # From there on torch returns x itself; beyond 20 float32 knows no difference.
        result = net.select(net.binary("GREATER", scaled, threshold), wide, result)
    return net.cast(result, input.dtype)


@converter(aten.log_sigmoid.default)
def log_sigmoid(net: Network, input: Tensor) -> Tensor:
    """log_sigmoid(Tensor self) -> Tensor"""
    wide = net.cast(input, torch.float32)
    return net.cast(net.unary("NEG", log_one_plus_exp(net, net.unary("NEG", wide))), input.dtype)


@converter(aten.mish.default)
def mish(net: Network, input: Tensor) -> Tensor:
    """mish(Tensor self) -> Tensor"""
    # tanh(log(1 + y)) is z / (z + 2) with z = y (y + 2), y = exp(x); beyond 20 it is 1.
    wide = net.cast(input, torch.float32)
    grown = net.unary("EXP", net.binary("MIN", wide, 20.0))
    product = net.elementwise("PROD", grown, net.binary("SUM", grown, 2.0))
    gate = net.elementwise("DIV", product, net.binary("SUM", product, 2.0))
    return net.cast(net.elementwise("PROD", wide, gate), input.dtype)
