"""Normalization, softmax, matrix products, reductions, cumulative sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bare_network import trt
from tests.layers.row import FLOATS, Row, add, const, integers, normal

IMAGE = normal(2, 6, 5, 4)
EPSILON = 2.0**-16  # TensorRT keeps it in float32


def normalization(
    name: str,
    axes: tuple[int, ...],
    shape: tuple[int, ...],
    truth: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    method: str = "normalization",
    needs: str = "",
    **attributes: Any,
) -> Row:
    scale, bias = normal(*shape, seed=1), normal(*shape, seed=2)
    mask = sum(1 << axis for axis in axes)
    build = add(method, const(scale), const(bias), mask, epsilon=EPSILON, **attributes)
    return Row(f"{method}-{name}", build, (IMAGE,), lambda x: truth(x, scale.double(), bias.double()), needs=needs)


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (5, 4), scale[0, 0], bias[0, 0], EPSILON)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale.reshape(6), bias=bias.reshape(6), eps=EPSILON)


def group_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 3, scale.reshape(6), bias.reshape(6), EPSILON)


def group_norm_v1(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return group_norm(x, scale.repeat_interleave(2, 1), bias.repeat_interleave(2, 1))


V2 = {"method": "normalization_v2", "needs": "normalization_v2"}
NORMALIZATIONS = [
    normalization("layer", (2, 3), (1, 1, 5, 4), layer_norm),
    normalization("instance", (2, 3), (1, 6, 1, 1), instance_norm),
    normalization("group", (2, 3), (1, 3, 1, 1), group_norm_v1, num_groups=3),
    normalization("layer", (2, 3), (1, 1, 5, 4), layer_norm, **V2),
    normalization("instance", (2, 3), (1, 6, 1, 1), instance_norm, **V2),
    normalization("group", (2, 3), (1, 6, 1, 1), group_norm, num_groups=3, **V2),
    Row("lrn", add("lrn", 3, 0.5, 0.75, 2.0), (IMAGE,), lambda x: F.local_response_norm(x, 3, 0.5, 0.75, 2.0)),
    Row("softmax", add("softmax", axes=1 << 2), (IMAGE,), lambda x: torch.softmax(x, 2)),
]


def ragged(x: Tensor, bounds: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for row, bound in enumerate(bounds.flatten().tolist()):
        y[0, row, :bound] = torch.softmax(x[0, row, :bound], 0)
    return y


BOUNDS = torch.tensor([1, 4, 6], dtype=torch.int32).reshape(1, 3, 1)
NONE, TRANSPOSE, VECTOR = (getattr(trt.MatrixOperation, name) for name in ("NONE", "TRANSPOSE", "VECTOR"))


def matmul(op0: Any, op1: Any) -> Callable[..., Any]:
    return lambda net, a, b: net.definition.add_matrix_multiply(a, op0, b, op1).get_output(0)


PRODUCTS = [
    Row("ragged_softmax", add("ragged_softmax"), (normal(1, 3, 6), BOUNDS), ragged, floats=FLOATS[:2]),
    Row("matmul", matmul(NONE, NONE), (normal(2, 3, 4, 5), normal(1, 3, 5, 6)), torch.matmul),
    Row(
        "matmul-transposed",
        matmul(TRANSPOSE, TRANSPOSE),
        (normal(3, 5, 4), normal(3, 6, 5)),
        lambda a, b: torch.einsum("bki,bjk->bij", a, b),
    ),
    Row("matmul-vector", matmul(NONE, VECTOR), (normal(3, 4, 5), normal(3, 5)), lambda a, b: (a * b[:, None]).sum(-1)),
    Row(
        "vector-matmul",
        matmul(VECTOR, NONE),
        (normal(3, 5), normal(3, 5, 4)),
        lambda a, b: (a[:, :, None] * b).sum(1),
    ),
    Row("vector-vector", matmul(VECTOR, VECTOR), (normal(3, 5), normal(3, 5)), lambda a, b: (a * b).sum(-1)),
    Row(
        "einsum",
        lambda net, a, b: net.definition.add_einsum([a, b], "bik,bjk->bij").get_output(0),
        (normal(2, 3, 5), normal(2, 4, 5)),
        lambda a, b: a @ b.mT,
    ),
]

REDUCE: dict[str, Callable[..., Tensor]] = {
    "SUM": torch.sum,
    "MAX": torch.amax,
    "MIN": torch.amin,
    "AVG": torch.mean,
    "PROD": lambda x, dim, keepdim: x.prod(dim[1], keepdim=keepdim).prod(dim[0], keepdim=keepdim),
}


def reduce(op: str, keep: bool) -> Callable[..., Any]:
    return add("reduce", getattr(trt.ReduceOperation, op), 0b1010, keep)


def cumulative(axis: int, exclusive: bool, reverse: bool) -> Callable[..., Any]:
    return lambda net, x: net.definition.add_cumulative(
        x, net.int(axis), trt.CumulativeOperation.SUM, exclusive, reverse
    ).get_output(0)


REDUCTIONS = [
    *(
        Row(
            f"reduce-{op}{'-keep' if keep else ''}",
            reduce(op, keep),
            (normal(2, 3, 2, 4),),
            lambda x, f=f, keep=keep: f(x, dim=(1, 3), keepdim=keep),
        )
        for op, f in REDUCE.items()
        for keep in (True, False)
    ),
    Row("reduce-SUM-int32", reduce("SUM", True), (integers(2, 3, 2, 4),), lambda x: x.sum((1, 3), keepdim=True)),
    Row(
        "reduce-MAX-int64", reduce("MAX", True), (integers(2, 3, 2, 4).long(),), lambda x: x.amax((1, 3), keepdim=True)
    ),
    *(
        Row(
            f"reduce-{op}-of-nothing",
            reduce(op, True),
            (normal(2, 0, 2, 4),),
            lambda x, bound=bound: x.new_full((2, 1, 2, 1), bound),
        )
        for op, bound in (("MAX", -math.inf), ("MIN", math.inf), ("SUM", 0.0), ("PROD", 1.0))
    ),
    *(
        Row(f"cumulative-{name}", cumulative(1, exclusive, reverse), (normal(2, 4, 3),), truth, needs="cumulative")
        for name, exclusive, reverse, truth in (
            ("inclusive", False, False, lambda x: x.cumsum(1)),
            ("exclusive", True, False, lambda x: x.cumsum(1) - x),
            ("reverse", False, True, lambda x: x.flip(1).cumsum(1).flip(1)),
            ("exclusive-reverse", True, True, lambda x: x.flip(1).cumsum(1).flip(1) - x),
        )
    ),
    Row("cumulative-int32", cumulative(0, False, False), (integers(4, 3),), lambda x: x.cumsum(0), needs="cumulative"),
]

ROWS = [*NORMALIZATIONS, *PRODUCTS, *REDUCTIONS]
