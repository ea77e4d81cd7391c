"""Activation functions."""

from __future__ import annotations

import math
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


@converter(aten.relu.default)
def relu(net: Network, input: Tensor) -> Tensor:
    """relu(Tensor self) -> Tensor"""
    if not input.dtype.is_floating_point:
        return net.binary("MAX", input, 0)
    return activate(net, input, "relu")


@converter(aten.relu6.default)
def relu6(net: Network, input: Tensor) -> Tensor:
    """relu6(Tensor self) -> Tensor"""
    return activate(net, input, "clip", 0.0, 6.0)


@converter(aten.sigmoid.default)
def sigmoid(net: Network, input: Tensor) -> Tensor:
    """sigmoid(Tensor self) -> Tensor"""
    return activate(net, input, "sigmoid")


@converter(aten.tanh.default)
def tanh(net: Network, input: Tensor) -> Tensor:
    """tanh(Tensor self) -> Tensor"""
    return activate(net, input, "tanh")


@converter(aten.silu.default)
def silu(net: Network, input: Tensor) -> Tensor:
    """silu(Tensor self) -> Tensor"""
    return activate(net, input, "silu")


@converter(aten.hardsigmoid.default)
def hardsigmoid(net: Network, input: Tensor) -> Tensor:
    """hardsigmoid(Tensor self) -> Tensor"""
    return activate(net, input, "hardsigmoid")


@converter(aten.hardswish.default)
def hardswish(net: Network, input: Tensor) -> Tensor:
    """hardswish(Tensor self) -> Tensor"""
    return activate(net, input, "hardswish")


@converter(aten.gelu.default)
def gelu(net: Network, input: Tensor, approximate: str) -> Tensor:
    """gelu(Tensor self, *, str approximate='none') -> Tensor"""
    return activate(net, input, "gelu" if approximate == "none" else "gelu_tanh")


@converter(aten.leaky_relu.default)
def leaky_relu(net: Network, input: Tensor, negative_slope: float) -> Tensor:
    """leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor"""
    return activate(net, input, "leaky_relu", negative_slope)


@converter(aten.elu.default)
def elu(net: Network, input: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    """elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor"""
    if input_scale != 1:
        # alpha * (exp(x * input_scale) - 1) below zero, x above: two activations of their own.
        positive = net.activation("RELU", input)
        negative = net.elementwise("MIN", input, net.tensor(0.0, input.dtype))
        grown = net.activation("ELU", net.binary("PROD", negative, input_scale), alpha)
        result = net.elementwise("SUM", positive, grown)
    else:
        result = net.activation("ELU", input, alpha)
    return result if scale == 1 else net.binary("PROD", result, scale)


@converter(aten.celu.default)
def celu(net: Network, input: Tensor, alpha: float) -> Tensor:
    """celu(Tensor self, Scalar alpha=1.0) -> Tensor"""
    return elu(net, input, alpha, 1.0, 1 / alpha)


@converter(aten.selu.default)
def selu(net: Network, input: Tensor) -> Tensor:
    """selu(Tensor self) -> Tensor"""
    return net.activation("SELU", input, 1.6732632423543772, 1.0507009873554805)


@converter(aten.softplus.default)
def softplus(net: Network, input: Tensor, beta: float, threshold: float) -> Tensor:
    """softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor"""
    # log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which cannot overflow; beyond the threshold it is x itself.
    scaled = net.binary("PROD", input, beta) if beta != 1 else input
    decayed = net.unary("EXP", net.unary("NEG", net.unary("ABS", scaled)))
    soft = net.binary("SUM", net.activation("RELU", scaled), net.unary("LOG", net.binary("SUM", decayed, 1)))
    soft = net.binary("DIV", soft, beta) if beta != 1 else soft
    linear = net.elementwise("GREATER", scaled, net.tensor(threshold, input.dtype))
    return net.select(linear, input, soft)


@converter(aten.mish.default)
def mish(net: Network, input: Tensor) -> Tensor:
    """mish(Tensor self) -> Tensor"""
    return net.elementwise("PROD", input, net.activation("TANH", softplus(net, input, 1.0, 20.0)))


@converter(aten.log_sigmoid.default)
def log_sigmoid(net: Network, input: Tensor) -> Tensor:
    """log_sigmoid(Tensor self) -> Tensor"""
    return net.unary("NEG", softplus(net, net.unary("NEG", input), 1.0, math.inf))


@converter(aten.hardtanh.default)
def hardtanh(net: Network, input: Tensor, min_val: float, max_val: float) -> Tensor:
    """hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor"""
    return clamp(net, input, min_val, max_val)


@converter(aten.clamp.default)
def clamp(net: Network, input: Tensor, min: Any, max: Any) -> Tensor:
    """clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor"""
    for operation, bound in (("MAX", min), ("MIN", max)):
        if bound is not None:
            input = net.binary(operation, input, bound)
    return input


@converter(aten.clamp_min.default)
def clamp_min(net: Network, input: Tensor, min: Any) -> Tensor:
    """clamp_min(Tensor self, Scalar min) -> Tensor"""
    return clamp(net, input, min, None)


@converter(aten.clamp_max.default)
def clamp_max(net: Network, input: Tensor, max: Any) -> Tensor:
    """clamp_max(Tensor self, Scalar max) -> Tensor"""
    return clamp(net, input, None, max)


@converter(aten.clamp.Tensor)
def clamp_tensor(net: Network, input: Tensor, min: Tensor | None, max: Tensor | None) -> Tensor:
    """clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor"""
    return clamp(net, input, min, max)


@converter(aten._prelu_kernel.default, aten.prelu.default)
def prelu(net: Network, input: Tensor, weight: Tensor) -> Tensor:
    """prelu(Tensor self, Tensor weight) -> Tensor"""
    if weight.rank != input.rank:
        shape = [weight.shape[0] if axis == 1 else 1 for axis in range(max(input.rank, 1))]
        weight = net.reshape(weight, shape if input.rank > 1 else (weight.shape[0],))
    layer = net.add("add_parametric_relu", input.itensor, weight.itensor)
    return net.output_of(layer, input.shape)
