"""Layers that compute each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bare_network import BareNetwork, first, trt
from tests.layers.row import FLOATS, READABLE_FLOATS, Row, add, in_tensorrt_10, integers, normal

X = normal(2, 3, 2, 4, scale=2.0)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "RELU": lambda x: x.clamp(min=0),
    "SIGMOID": lambda x: 1 / (1 + torch.exp(-x)),
    "TANH": torch.tanh,
    "LEAKY_RELU": lambda x: torch.where(x >= 0, x, 0.25 * x),
    "ELU": lambda x: torch.where(x >= 0, x, 0.25 * (x.exp() - 1)),
    "SELU": lambda x: torch.where(x > 0, 0.5 * x, 0.5 * (0.25 * x.exp() - 0.25)),
    "SOFTSIGN": lambda x: x / (1 + x.abs()),
    "SOFTPLUS": lambda x: 0.25 * torch.log(torch.exp(0.5 * x) + 1),
    "CLIP": lambda x: torch.minimum(torch.tensor(0.5), x).clamp(min=0.25),
    "HARD_SIGMOID": lambda x: (0.25 * x + 0.5).clamp(0, 1),
    "SCALED_TANH": lambda x: 0.25 * torch.tanh(0.5 * x),
    "THRESHOLDED_RELU": lambda x: x * (x > 0.25),
    "GELU_ERF": lambda x: 0.5 * x * (1 + torch.erf(math.sqrt(0.5) * x)),
    "GELU_TANH": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (0.044715 * x**3 + x))),
}
SMALL = normal(3, 7).clamp(-0.96875, 0.96875)
UNARY = {
    "EXP": (X, np.exp),
    "LOG": (X.abs() + 0.125, np.log),
    "SQRT": (X.abs(), np.sqrt),
    "RECIP": (X.abs() + 0.125, lambda x: 1 / x),
    "ABS": (X, np.abs),
    "NEG": (X, np.negative),
    "SIN": (X, np.sin),
    "COS": (X, np.cos),
    "TAN": (SMALL, np.tan),
    "SINH": (X, np.sinh),
    "COSH": (X, np.cosh),
    "ASIN": (SMALL, np.arcsin),
    "ACOS": (SMALL, np.arccos),
    "ATAN": (X, np.arctan),
    "ASINH": (X, np.arcsinh),
    "ACOSH": (X.abs() + 1, np.arccosh),
    "ATANH": (SMALL, np.arctanh),
    "CEIL": (X, np.ceil),
    "FLOOR": (X, np.floor),
    "ERF": (X, np.vectorize(math.erf)),
    "SIGN": (torch.tensor([-2.0, 0.0, 0.5]), np.sign),
    "ROUND": (torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.75]), np.rint),
    "ISINF": (torch.tensor([1.0, math.inf, -math.inf, math.nan]), np.isinf),
    "ISNAN": (torch.tensor([1.0, math.inf, -math.inf, math.nan]), np.isnan),
}
ELEMENTWISE = {
    "SUM": np.add,
    "PROD": np.multiply,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "SUB": np.subtract,
    "DIV": np.divide,
    "FLOOR_DIV": np.floor_divide,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
}
INTEGER_DIVISORS = torch.tensor([[3, -3, 2, -2, 7]], dtype=torch.int32)
BOOLS = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])


def numpy_truth(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *xs: torch.as_tensor(function(*(x.numpy() for x in xs)))


def c_division(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[int(x / y) for x, y in zip(row, b[0], strict=True)] for row in a], dtype=a.dtype)


def unary(op: str) -> Callable[..., Any]:
    return add("unary", getattr(trt.UnaryOperation, op))


def elementwise(op: str) -> Callable[..., Any]:
    return add("elementwise", getattr(trt.ElementWiseOperation, op))


def scale(mode: str, shape: tuple[int, ...], power: bool) -> Row:
    size = math.prod(shape)
    multiplier, shift = normal(size, seed=1), normal(size, seed=2).abs() + 8

    def build(net: BareNetwork, x: Any) -> Any:
        weights = [net.weights(w.to(net.dtype)) for w in (shift, multiplier)]
        exponent = net.weights(torch.full((size,), 1.5).to(net.dtype) if power else None)
        return first(net.definition.add_scale_nd(x, getattr(trt.ScaleMode, mode), *weights, exponent, 1))

    def truth(x: Tensor) -> Tensor:
        y = x * multiplier.double().reshape(shape) + shift.double().reshape(shape)
        return y**1.5 if power else y

    return Row(f"scale-{mode.lower()}", build, (normal(2, 3, 4, 5),), truth, floats=READABLE_FLOATS)


ROWS = [
    *(
        Row(f"activation-{op}", add("activation", getattr(trt.ActivationType, op), alpha=0.25, beta=0.5), (X,), f)
        for op, f in ACTIVATIONS.items()
    ),
    Row(
        "activation-RELU-int32",
        add("activation", trt.ActivationType.RELU),
        (integers(4, 5),),
        F.relu,
        refused=in_tensorrt_10("its activations are of floating point only; converters take MAX"),
    ),
    *(Row(f"unary-{op}", unary(op), (x,), numpy_truth(f)) for op, (x, f) in UNARY.items()),
    *(
        Row(f"unary-{op}-int64", unary(op), (integers(3, 4).long(),), f)
        for op, f in {"ABS": torch.abs, "NEG": torch.neg, "SIGN": torch.sign}.items()
    ),
    Row("unary-NOT", unary("NOT"), (BOOLS[0],), torch.logical_not),
    *(
        Row(f"elementwise-{op}", elementwise(op), (X, normal(1, 3, 1, 4)), numpy_truth(f))
        for op, f in ELEMENTWISE.items()
    ),
    Row("elementwise-POW", elementwise("POW"), (X.abs() + 0.125, normal(1, 3, 1, 4)), numpy_truth(np.power)),
    *(
        Row(f"elementwise-{op}-int32", elementwise(op), (integers(6, 5), INTEGER_DIVISORS), numpy_truth(f))
        for op, f in {**ELEMENTWISE, "DIV": c_division}.items()
    ),
    *(
        Row(f"elementwise-{op}", elementwise(op), BOOLS, f)
        for op, f in {"AND": torch.logical_and, "OR": torch.logical_or, "XOR": torch.logical_xor}.items()
    ),
    Row("select", add("select"), (BOOLS[0].reshape(4, 1), normal(1, 3), normal(4, 3)), torch.where),
    Row(
        "parametric_relu",
        add("parametric_relu"),
        (X, normal(1, 3, 1, 1)),
        lambda x, s: F.prelu(x, s.reshape(3)),
    ),
    Row("identity", add("identity"), (X,), lambda x: x),
    Row("cast-int32", add("cast", trt.int32), (X,), lambda x: x.to(torch.int32)),
    Row(
        "cast-saturates",
        add("cast", trt.int32),
        (torch.tensor([math.inf, -math.inf, 2.0**32, -1.75]),),
        lambda x: torch.tensor([2**31 - 1, -(2**31), 2**31 - 1, -1]),
        floats=FLOATS[:2],
    ),
    Row(
        "cast-wraps",
        add("cast", trt.int32),
        (torch.tensor([2**31 + 5, 2**32 + 7]),),
        lambda x: torch.tensor([5 - 2**31, 7]),
    ),
    Row("cast-bool", add("cast", trt.bool), (torch.tensor([-1.0, 0.0, 0.5]),), lambda x: x != 0),
    Row("cast-float16", add("cast", trt.float16), (integers(3, 4),), lambda x: x.half()),
    Row("cast-from-bool", add("cast", trt.float32), (BOOLS[0],), lambda x: x.float()),
    Row("cast-from-uint8", add("cast", trt.int64), (torch.tensor([1, 255], dtype=torch.uint8),), lambda x: x.long()),
    scale("UNIFORM", (1,), True),
    scale("CHANNEL", (3, 1, 1), True),
    scale("ELEMENTWISE", (3, 4, 5), False),
]
