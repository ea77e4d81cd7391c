"""Operators that passes introduce, as real torch operators, so that a Program stays executable after fusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    "none": lambda x, alpha, beta: x,
    "relu": lambda x, alpha, beta: F.relu(x),
    "clip": lambda x, alpha, beta: torch.clamp(x, alpha, beta),
    "leaky_relu": lambda x, alpha, beta: F.leaky_relu(x, alpha),
    "sigmoid": lambda x, alpha, beta: torch.sigmoid(x),
    "hardsigmoid": lambda x, alpha, beta: F.hardsigmoid(x),
    "hardswish": lambda x, alpha, beta: F.hardswish(x),
    "silu": lambda x, alpha, beta: F.silu(x),
    "gelu": lambda x, alpha, beta: F.gelu(x),
    "gelu_tanh": lambda x, alpha, beta: F.gelu(x, approximate="tanh"),
    "tanh": lambda x, alpha, beta: torch.tanh(x),
}
"""The activations of a fused block by name; ``alpha`` is the slope of leaky_relu, both are the bounds of clip."""


@torch.library.custom_op("torch2trt::conv_block", mutates_args=())
def conv_block(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """``activation(convolution(input, weight) + bias + residual)``.

    Args:
        input: [N, C, *spatial].
        weight: [K, C // groups, *window].
        bias: [K].
        residual: of the result's shape and dtype.
        activation: a key of :data:`ACTIVATIONS`.
    """
    nothing = [0] * len(stride)
    result = torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, False, nothing, groups)
    if residual is not None:
        result = result + residual
    return ACTIVATIONS[activation](result, alpha, beta)


@conv_block.register_fake
def _(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    nothing = [0] * len(stride)
    return torch.ops.aten.convolution(  # type: ignore[no-any-return]
        input, weight, bias, stride, padding, dilation, False, nothing, groups
    )


@torch.library.custom_op("torch2trt::linear_block", mutates_args=())
def linear_block(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """``activation(input @ weight.T + bias)``.

    Args:
        input: [*, C].
        weight: [K, C].
        bias: [K].
        activation: a key of :data:`ACTIVATIONS`.
    """
    return ACTIVATIONS[activation](torch.ops.aten.linear(input, weight, bias), alpha, beta)


@linear_block.register_fake
def _(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    return torch.ops.aten.linear(input, weight, bias)  # type: ignore[no-any-return]


@torch.library.custom_op("torch2trt::attention", mutates_args=())
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """Masked attention whose result for queries that may attend to nothing is not used.

    Args:
        query: [..., L, E].
        key: [..., S, E].
        value: [..., S, V].
        attn_mask: broadcasts to [..., L, S]; boolean, true where to attend, or added to the scores.
        scale: of the scores; None: 1 / sqrt(E).
        enable_gqa: whether the third dimension from the right of key and value may be a divisor of the query's.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale, enable_gqa=enable_gqa)


@attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


CONV_BLOCK = torch.ops.torch2trt.conv_block.default
ATTENTION = torch.ops.torch2trt.attention.default
LINEAR_BLOCK = torch.ops.torch2trt.linear_block.default
FUSED_BLOCKS = frozenset({CONV_BLOCK, LINEAR_BLOCK})
