"""Operators of the Core ATen opset by their own names, which torch's functions reach by others."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.cases import normal, together
from tests.harness import OpCase

aten = torch.ops.aten

X, IMAGE, VOLUME = normal(4, 6), normal(2, 6, 4, 5), normal(2, 3, 4, 5, 6)
ROWS, STARTS = torch.tensor([0, 2, 1, 3, 3]), torch.tensor([0, 2])
WEIGHT, BIAS, MEAN, VARIANCE = normal(6, seed=1), normal(6, seed=2), normal(6, seed=3), normal(6, seed=4).square()
GRAD, NARROW = normal(2, 6, 4, 5, seed=9), normal(5, seed=1)

NUMBERS = together(
    *(
        partial(getattr(aten, name).Scalar, other=0.3)
        for name in ("eq", "ge", "gt", "le", "lt", "ne", "add", "sub", "mul", "div", "fmod")
    ),
    lambda x: aten.div.Scalar_mode(x, 0.3, rounding_mode="floor"),
    lambda x: aten.pow.Scalar(2.0, x),
    lambda x: aten.clamp.default(x, -0.5, 0.5),
)
COPIES = together(
    lambda x: aten.alias.default(x) + 1,
    lambda x: aten.copy.default(x, x[:1]),
    lambda x: aten.native_dropout.default(x, 0.5, False)[0] + 1,
    lambda x: aten.atan2.out(x, x + 2, out=torch.empty_like(x)),
)
FACTORIES = together(
    lambda x: x + aten.arange.start_step(0, 12, 2),
    lambda x: x + aten.empty.memory_format([4, 6]).fill_(2),
    lambda x: x + aten.empty_strided.default([4, 6], [6, 1]).fill_(2),
    lambda x: x + aten.scalar_tensor.default(3.0),
)
BITWISE = (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor)
BITS = together(*(packet.Tensor for packet in BITWISE))
BITS_OF_ONE = together(*(partial(packet.Scalar, other=5) for packet in BITWISE), aten.bitwise_not.default)
POOLS = together(
    lambda x: aten._adaptive_avg_pool2d.default(x, [2, 3]),
    lambda x: aten.upsample_bilinear2d.vec(x, [8, 9], False, None),
    lambda x: aten.upsample_nearest2d.vec(x, None, [2.0, 2.0]),
    lambda x: aten.reflection_pad1d.default(x[0], [1, 2]),
    lambda x: aten.reflection_pad2d.default(x, [1, 2, 0, 1]),
    lambda x: aten.replication_pad2d.default(x, [1, 2, 0, 1]),
)
VOLUMES = together(
    lambda x: aten._adaptive_avg_pool3d.default(x, [2, 3, 2]),
    lambda x: aten.reflection_pad3d.default(x, [1, 2, 0, 1, 1, 1]),
    lambda x: aten.replication_pad3d.default(x, [1, 2, 0, 1, 1, 1]),
)


def batch_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *running: torch.Tensor) -> torch.Tensor:
    return aten._native_batch_norm_legit_no_training.default(x, weight, bias, *running, 0.1, 1e-5)[0]


def trained(x: torch.Tensor, weight: torch.Tensor, *running: torch.Tensor) -> Any:
    mean, variance = (each.clone() for each in running)
    return aten._native_batch_norm_legit.default(x, weight, None, mean, variance, True, 0.1, 1e-5), mean, variance


def layer_norm_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    _, mean, scale = aten.native_layer_norm.default(x, [5], weight, None, 1e-5)
    return aten.native_layer_norm_backward.default(grad, x, [5], mean, scale, weight, None, [True, True, False])[:2]


def group_norm_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    _, mean, scale = aten.native_group_norm.default(x, weight, None, 2, 6, 20, 3, 1e-5)
    return aten.native_group_norm_backward.default(grad, x, mean, scale, weight, 2, 6, 20, 3, [True, True, True])


CASES = [
    OpCase("core-numbers", NUMBERS, (X,)),
    OpCase("core-copies", COPIES, (X,)),
    OpCase("core-factories", FACTORIES, (X,)),
    OpCase("core-bits", BITS, (ROWS, ROWS.flip(0)), tensorrt="more than 8 bits"),
    OpCase("core-bits-of-one", BITS_OF_ONE, (ROWS,), tensorrt="more than 8 bits"),
    OpCase("core-pools", POOLS, (IMAGE,)),
    OpCase("core-volumes", VOLUMES, (VOLUME,)),
    OpCase(
        "core-softmax", together(lambda x: aten._softmax(x, 1, False), lambda x: aten._log_softmax(x, 1, False)), (X,)
    ),
    OpCase("core-cdist", aten._cdist_forward.default, (X, normal(5, 6), 2.0, None)),
    OpCase("core-embedding_bag", lambda *args: aten._embedding_bag.default(*args)[0], (X, ROWS, STARTS)),
    OpCase("core-embedding_backward", aten.embedding_dense_backward.default, (normal(5, 3), ROWS, 7, 1, False)),
    OpCase("core-embedding_backward-scaled", aten.embedding_dense_backward.default, (normal(5, 3), ROWS, 7, -1, True)),
    OpCase("core-index", aten.index.Tensor, (X, [STARTS, STARTS + 3])),
    OpCase("core-col2im", aten.col2im.default, (normal(2, 12, 30), [6, 7], [2, 2], [1, 1], [0, 0], [1, 1])),
    OpCase("core-batch_norm", batch_norm, (IMAGE, WEIGHT, BIAS, MEAN, VARIANCE)),
    OpCase("core-batch_norm-trained", trained, (IMAGE, WEIGHT, MEAN, VARIANCE)),
    OpCase("core-layer_norm_backward", layer_norm_backward, (GRAD, IMAGE, NARROW)),
    OpCase("core-group_norm_backward", group_norm_backward, (GRAD, IMAGE, WEIGHT)),
    OpCase("core-argument", lambda x, y: (y, 3, x), (X, ROWS)),
    OpCase("core-argument-dynamic", lambda x: x, (X,), dynamic={0: {0: (1, 8)}}),
    OpCase("core-sym_size", lambda x: x + aten.sym_size.int(x, 0), (X,), dynamic={0: {0: (2, 8)}}),
    OpCase("core-sym_stride", lambda x: x + aten.sym_stride.int(x, 0), (IMAGE,), dynamic={0: {2: (2, 8)}}),
]
