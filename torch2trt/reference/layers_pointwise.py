"""Layers that compute each element by itself: activation, unary, elementwise, cast, scale, quantize, …."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torch2trt.reference.readback import Node
from torch2trt.reference.registry import along, layer

# By the names of ActivationType: x, alpha, beta.
_ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "RELU": lambda x, a, b: x.relu(),
    "SIGMOID": lambda x, a, b: x.sigmoid(),
    "TANH": lambda x, a, b: x.tanh(),
    "LEAKY_RELU": lambda x, a, b: F.leaky_relu(x, a),
    "ELU": lambda x, a, b: F.elu(x, a),
    "SELU": lambda x, a, b: b * F.elu(x, a),
    "SOFTSIGN": lambda x, a, b: F.softsign(x),
    "SOFTPLUS": lambda x, a, b: a * F.softplus(b * x),
    "CLIP": lambda x, a, b: x.clamp(max=b).clamp(min=a),
    "HARD_SIGMOID": lambda x, a, b: (a * x + b).clamp(0, 1),
    "SCALED_TANH": lambda x, a, b: a * (b * x).tanh(),
    "THRESHOLDED_RELU": lambda x, a, b: F.threshold(x, a, 0.0),
    "GELU_ERF": lambda x, a, b: F.gelu(x),
    "GELU_TANH": lambda x, a, b: F.gelu(x, approximate="tanh"),
}

# By the names of UnaryOperation.
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "EXP": torch.exp,
    "LOG": torch.log,
    "SQRT": torch.sqrt,
    "RECIP": torch.reciprocal,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "SIN": torch.sin,
    "COS": torch.cos,
    "TAN": torch.tan,
    "SINH": torch.sinh,
    "COSH": torch.cosh,
    "ASIN": torch.asin,
    "ACOS": torch.acos,
    "ATAN": torch.atan,
    "ASINH": torch.asinh,
    "ACOSH": torch.acosh,
    "ATANH": torch.atanh,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ERF": torch.erf,
    "NOT": torch.logical_not,
    "SIGN": torch.sign,
    "ROUND": torch.round,
    "ISINF": torch.isinf,
    "ISNAN": torch.isnan,
}


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


# By the names of ElementWiseOperation.
_ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": _divide,
    "POW": torch.pow,
    "FLOOR_DIV": torch.floor_divide,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}

# Smallest and largest value that a quantized type holds.
_QUANTIZED = {"INT8": (-128, 127), "INT4": (-8, 7), "FP8": (-448, 448)}


@layer("ACTIVATION", wide=True)
def activation(node: Node, x: Tensor) -> Tensor:
    """One of ActivationType, with alpha and beta."""
    return _ACTIVATIONS[node.api.type.name](x, node.api.alpha, node.api.beta)


@layer("UNARY", wide=True)
def unary(node: Node, x: Tensor) -> Tensor:
    """One of UnaryOperation."""
    return _UNARY[node.api.op.name](x)


@layer("ELEMENTWISE", wide=True)
def elementwise(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """One of ElementWiseOperation, broadcasting; integer division truncates, comparisons yield BOOL."""
    return _ELEMENTWISE[node.api.op.name](a, b)


@layer("SELECT")
def select(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Elements of a where the condition holds, of b elsewhere."""
    return torch.where(condition, a, b)


@layer("PARAMETRIC_RELU", wide=True)
def parametric_relu(node: Node, x: Tensor, slopes: Tensor) -> Tensor:
    """Positive x as it is, ``slopes · x`` elsewhere; the slopes broadcast."""
    return torch.where(x < 0, slopes * x, x)


@layer("IDENTITY")
@layer("CONDITIONAL_INPUT")
def identity(node: Node, x: Tensor) -> Tensor:
    """The input itself."""
    return x


@layer("CAST")
def cast(node: Node, x: Tensor) -> Tensor:
    """Another dtype; floating point to integer truncates and saturates, integer to integer wraps around."""
    dtype = node.dtype()
    y = x.to(dtype)
    if not x.is_floating_point() or dtype.is_floating_point or dtype == torch.bool:
        return y
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    x = x.double()
    return torch.where(x >= high, high, torch.where(x <= low, low, y))


@layer("SCALE", wide=True)
def scale(node: Node, x: Tensor) -> Tensor:
    """``(x · scale + shift) ^ power``; one weight for all, one a channel, or one an element of an item."""
    api = node.api
    if api.mode.name == "UNIFORM":
        shape: tuple[int, ...] = ()
    elif api.mode.name == "CHANNEL":
        shape = tuple(-1 if axis == api.channel_axis else 1 for axis in range(x.dim()))
    else:
        shape = tuple(x.shape[1:])
    multiplier, shift, power = (node.weights(role, shape, x) for role in ("scale", "shift", "power"))
    if multiplier is not None:
        x = x * multiplier
    if shift is not None:
        x = x + shift
    return x if power is None else x.pow(power)


@layer("QUANTIZE")
def quantize(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """``x / scale``, saturated to INT8, INT4 (one value in each int8) or FP8; the zero point is zero."""
    wide = torch.promote_types(torch.float32, x.dtype)
    quotient = x.to(wide) / _spread(node, scale.to(wide), x)
    return saturate(quotient, node.declared[0].dtype_name).to(node.dtype())


@layer("DEQUANTIZE")
def dequantize(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """``x · scale``, computed in float32."""
    wide = torch.promote_types(torch.float32, scale.dtype)
    return (x.to(wide) * _spread(node, scale.to(wide), x)).to(node.dtype())


def saturate(x: Tensor, dtype_name: str) -> Tensor:
    """What a quantized type can hold of x: rounded half to even where it is an integer type, and clamped."""
    low, high = _QUANTIZED[dtype_name]
    return (x if dtype_name == "FP8" else x.round()).clamp(low, high)


def _spread(node: Node, scale: Tensor, x: Tensor) -> Tensor:
    """The scale of each element: one for the tensor, one a channel, or one a block."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1:
        return along(scale, node.api.axis % x.dim(), x.dim())
    for axis, size in enumerate(x.shape):
        scale = scale.repeat_interleave(size // scale.shape[axis], axis)
    return scale
