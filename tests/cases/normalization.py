"""Rows of torch2trt/converters/normalization.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.cases import normal
from tests.harness import OpCase

HALF, BRAIN = torch.float16, torch.bfloat16
IMAGE, TOKENS = normal(2, 6, 4, 5), normal(2, 3, 8)
SCALE, SHIFT = normal(8, seed=1), normal(8, seed=2)
CHANNEL = {"weight": normal(6, seed=1), "bias": normal(6, seed=2)}
MEAN, VARIANCE = normal(6, seed=3), normal(6, seed=4).square()


def far(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers whose mean is large beside their deviation: in 16 bits their sums and squares lose everything."""
    return (normal(*shape) * 4 + 300).to(dtype)


def layer_norms(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *of_two: torch.Tensor) -> Any:
    return (
        F.layer_norm(x, (8,), weight, bias),
        F.layer_norm(x, (8,)),
        F.layer_norm(x, (8,), weight),
        F.layer_norm(x, (8,), None, bias, 0.1),
        F.layer_norm(x, (3, 8), *of_two),
        F.layer_norm(x, (2, 3, 8)),
    )


def group_norms(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
    return *(F.group_norm(x, groups, weight, bias) for groups in (1, 2, 6)), F.group_norm(x, 3)


def response_norm(x: torch.Tensor) -> torch.Tensor:
    """ConvNeXt V2's, over the positions of ``[batch, height, width, channels]``."""
    strength = torch.linalg.vector_norm(x, 2, (1, 2), keepdim=True)
    return x * (strength / (strength.mean(-1, keepdim=True) + 1e-6))


def expanded_response_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return response_norm(F.gelu(F.linear(x, weight, bias)))


def instance_norms(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
    pairs = ((weight, bias), (None, None), (weight, None), (None, bias))
    return tuple(F.instance_norm(x, weight=each, bias=other) for each, other in pairs)


LAYER = [
    OpCase(
        "layer_norm",
        layer_norms,
        (TOKENS, SCALE, SHIFT, normal(3, 8), normal(3, 8, seed=1)),
        weights=(1, 2, 3, 4),
    ),
    OpCase("layer_norm-vector", F.layer_norm, (SHIFT, (8,), SCALE, SHIFT, 0.1), weights=(2,)),
    OpCase("layer_norm-of-one", F.layer_norm, (100 * TOKENS[..., :1], (1,), SCALE[:1], SHIFT[:1]), weights=(2, 3)),
    OpCase("layer_norm-of-one-bare", F.layer_norm, (TOKENS[..., :1, None], (1, 1)), dynamic={0: {0: (1, 4)}}),
    OpCase("layer_norm-computed-weights", F.layer_norm, (TOKENS, (8,), SCALE, SHIFT)),
    OpCase(
        "layer_norm-dynamic", F.layer_norm, (TOKENS, (8,), SCALE), weights=(2,), dynamic={0: {0: (1, 4), 1: (2, 9)}}
    ),
    *(
        OpCase(
            f"layer_norm-{dtype}".replace("torch.", ""),
            F.layer_norm,
            (far(2, 64, dtype=dtype), (64,), normal(64, seed=1, dtype=dtype), normal(64, seed=2, dtype=dtype)),
            weights=(2, 3),
        )
        for dtype in (HALF, BRAIN)
    ),
]

GROUP = [
    OpCase("group_norm", group_norms, (IMAGE, *CHANNEL.values()), weights=(1, 2)),
    OpCase("group_norm-vectors", F.group_norm, (normal(4, 6), 2, *CHANNEL.values()), weights=(2, 3)),
    OpCase("group_norm-sequence", F.group_norm, (normal(2, 6, 7), 2, CHANNEL["weight"]), weights=(2,)),
    OpCase("group_norm-volume", F.group_norm, (normal(2, 6, 2, 3, 4), 3, *CHANNEL.values(), 0.01), weights=(2, 3)),
    OpCase("group_norm-dynamic", F.group_norm, (IMAGE, 2), dynamic={0: {0: (1, 4), 2: (2, 9), 3: (2, 9)}}),
    OpCase("group_norm-one-group-dynamic", F.group_norm, (IMAGE, 1), dynamic={0: {0: (1, 4), 2: (2, 9)}}),
    OpCase("group_norm-float16", F.group_norm, (far(2, 6, 4, 5, dtype=HALF), 2)),
]

INSTANCE = [
    OpCase("instance_norm", instance_norms, (IMAGE, *CHANNEL.values()), weights=(1, 2)),
    OpCase("instance_norm-sequence", F.instance_norm, (normal(2, 6, 7),), CHANNEL),
    OpCase("instance_norm-volume", F.instance_norm, (normal(2, 6, 2, 3, 4),)),
    OpCase("instance_norm-dynamic", F.instance_norm, (IMAGE,), CHANNEL, dynamic={0: {0: (1, 4), 3: (2, 9)}}),
    OpCase("instance_norm-float16", F.instance_norm, (far(2, 6, 4, 5, dtype=HALF),)),
    OpCase(
        "instance_norm-running",
        F.instance_norm,
        (IMAGE, MEAN, VARIANCE, *CHANNEL.values(), False),
        weights=(1, 2, 3, 4),
    ),
    OpCase("instance_norm-running-float16", F.instance_norm, (IMAGE.half(), MEAN, VARIANCE, None, None, False)),
]

ROOT_MEAN_SQUARE = [
    OpCase("rms_norm", F.rms_norm, (TOKENS, (8,), SCALE, 1e-6), weights=(2,)),
    OpCase("rms_norm-plain", F.rms_norm, (TOKENS, (8,))),
    OpCase("rms_norm-two-dims", F.rms_norm, (IMAGE, (4, 5), normal(4, 5)), weights=(2,)),
    OpCase("rms_norm-dynamic", F.rms_norm, (TOKENS, (8,), SCALE), weights=(2,), dynamic={0: {1: (2, 9)}}),
    *(
        OpCase(
            f"rms_norm-{dtype}".replace("torch.", ""),
            F.rms_norm,
            (far(2, 64, dtype=dtype), (64,), normal(64, dtype=dtype), 1e-5),
            weights=(2,),
        )
        for dtype in (HALF, BRAIN)
    ),
]

LOCAL_RESPONSE = [
    OpCase("local_response_norm", F.local_response_norm, (IMAGE, 3, 0.5, 0.75, 2.0)),
    OpCase("local_response_norm-even", F.local_response_norm, (IMAGE, 2, 0.5)),
    OpCase("local_response_norm-sequence", F.local_response_norm, (normal(2, 6, 7), 3, 0.5)),
]

GLOBAL_RESPONSE = [
    OpCase("response_norm", response_norm, (normal(2, 4, 5, 6),)),
    OpCase("response_norm-dynamic", response_norm, (normal(2, 4, 5, 6),), dynamic={0: {0: (1, 4), 1: (2, 9)}}),
    OpCase("response_norm-narrow", response_norm, (normal(1, 2, 2, 672),)),
    *(
        OpCase(
            f"response_norm-of-linear-{width}",
            expanded_response_norm,
            (normal(1, 2, 2, 168), normal(width, 168, seed=1) / 13, normal(width, seed=2)),
            weights=(1, 2),
        )
        for width in (640, 672, 1280)
    ),
]

layer_statistics, group_statistics = torch.native_layer_norm, torch.native_group_norm
NATIVE = [
    OpCase("native_layer_norm", lambda *args: torch.native_layer_norm(*args)[0], (TOKENS, [8], SCALE, SHIFT, 1e-5)),
    OpCase("native_layer_norm-statistics", layer_statistics, (TOKENS, [3, 8], None, None, 1e-5)),
    OpCase(
        "native_layer_norm-statistics-dynamic",
        layer_statistics,
        (TOKENS, [8], SCALE, SHIFT, 1e-3),
        dynamic={0: {0: (1, 4)}},
    ),
    OpCase("native_layer_norm-statistics-half", layer_statistics, (TOKENS.half(), [8], None, None, 1e-5)),
    OpCase("native_group_norm", lambda x: torch.native_group_norm(x, None, None, 2, 6, 20, 3, 1e-5)[0], (IMAGE,)),
    OpCase("native_group_norm-statistics", group_statistics, (IMAGE, *CHANNEL.values(), 2, 6, 20, 3, 1e-5)),
    OpCase("native_group_norm-statistics-one", group_statistics, (IMAGE, None, None, 2, 6, 20, 1, 1e-5)),
    OpCase("native_group_norm-statistics-half", group_statistics, (IMAGE.half(), None, None, 2, 6, 20, 2, 1e-5)),
]


def trained(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, *affine: torch.Tensor) -> Any:
    """The result of a batch norm in training, and what it leaves of the running statistics."""
    mean, variance = mean.clone(), variance.clone()
    return F.batch_norm(x, mean, variance, *affine, training=True, momentum=0.2), mean, variance


functional = torch.ops.aten._native_batch_norm_legit_functional.default
RUNNING = [
    OpCase("batch_norm-trained", trained, (IMAGE, MEAN, VARIANCE, *CHANNEL.values())),
    OpCase("batch_norm-trained-dynamic", trained, (IMAGE, MEAN, VARIANCE), dynamic={0: {0: (2, 5), 3: (1, 6)}}),
    OpCase("batch_norm-trained-half", trained, (IMAGE.half(), MEAN, VARIANCE)),
    OpCase("batch_norm-functional", functional, (IMAGE, None, None, MEAN, VARIANCE, True, 0.1, 1e-5)),
    OpCase(
        "batch_norm-functional-evaluated",
        lambda *args: functional(*args)[0::3],
        (IMAGE, *CHANNEL.values(), MEAN, VARIANCE, False, 0.1, 1e-5),
    ),
    OpCase(
        "batch_norm-functional-evaluated-statistics",
        functional,
        (IMAGE, None, None, MEAN, VARIANCE, False, 0.1, 1e-5),
    ),
]

OF_BATCH = [
    OpCase("batch_norm-of-batch", lambda x: F.batch_norm(x, None, None, training=True), (IMAGE,)),
    OpCase(
        "batch_norm-of-batch-affine",
        lambda x, scale, shift: F.batch_norm(x, None, None, scale, shift, training=True),
        (IMAGE, *CHANNEL.values()),
        weights=(1, 2),
    ),
    OpCase(
        "batch_norm-statistics",
        lambda x: torch.ops.aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-5),
        (IMAGE,),
    ),
    OpCase(
        "batch_norm-of-batch-dynamic",
        lambda x: F.batch_norm(x, None, None, training=True),
        (IMAGE,),
        dynamic={0: {0: (2, 5)}},
    ),
    OpCase("batch_norm-of-batch-half", lambda x: F.batch_norm(x, None, None, training=True), (IMAGE.half(),)),
]

CASES = [*OF_BATCH, *RUNNING, *NATIVE, *LAYER, *GROUP, *INSTANCE, *ROOT_MEAN_SQUARE, *LOCAL_RESPONSE, *GLOBAL_RESPONSE]
