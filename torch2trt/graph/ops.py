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


@torch.library.custom_op("torch2trt::rotary", mutates_args=())
def rotary(input: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: ``x * cos + swapped * sin``, with the halves of the last dimension swapped.

    Args:
        input: [..., E].
        cos: [..., R], broadcasts to the first R channels of the input, R even; the others are handed through.
        sin: as ``cos``, with its first half negated.

    Returns:
        The input's shape.
    """
    count = cos.shape[-1]
    turned, rest = input[..., :count], input[..., count:]
    return torch.cat([turned * cos + turned.roll(count // 2, -1) * sin, rest], -1)


@rotary.register_fake
def _(input: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return input.new_empty(input.shape)


@torch.library.custom_op("torch2trt::dft", mutates_args=())
def dft(
    real: torch.Tensor, imag: torch.Tensor | None, dim: int, inverse: bool, onesided: bool, normalization: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The discrete Fourier transform along one dimension, of real and imaginary parts.

    Args:
        imag: None for real numbers.
        inverse: with the positive exponent.
        onesided: only the first half of the frequencies, ``n // 2 + 1`` of them.
        normalization: divides by 1, by the root of n or by n for 0, 1 and 2, as in ``aten._fft_c2c``.
    """
    dtype = torch.promote_types(real.dtype, torch.float32)
    points = torch.complex(real.to(dtype), (torch.zeros_like(real) if imag is None else imag).to(dtype))
    found = torch.ops.aten._fft_c2c(points, [dim % real.dim()], normalization, not inverse)
    count = real.shape[dim] // 2 + 1 if onesided else real.shape[dim]
    parts = torch.view_as_real(found.narrow(dim, 0, count)).to(real.dtype)
    return parts[..., 0].contiguous(), parts[..., 1].contiguous()


@dft.register_fake
def _(
    real: torch.Tensor, imag: torch.Tensor | None, dim: int, inverse: bool, onesided: bool, normalization: int
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = list(real.shape)
    if onesided:
        shape[dim] = shape[dim] // 2 + 1
    return real.new_empty(shape), real.new_empty(shape)


@torch.library.custom_op("torch2trt::real_inverse_dft", mutates_args=())
def real_inverse_dft(real: torch.Tensor, imag: torch.Tensor, dim: int, size: int, normalization: int) -> torch.Tensor:
    """The real numbers whose first half of frequencies has these parts.

    Args:
        real, imag: at least ``size // 2 + 1`` frequencies along the dimension.
        size: of the result's dimension.
        normalization: as of :func:`dft`.
    """
    dtype = torch.promote_types(real.dtype, torch.float32)
    found = torch.complex(real.to(dtype), imag.to(dtype))
    return torch.ops.aten._fft_c2r(found, [dim % real.dim()], normalization, size).to(real.dtype)  # type: ignore[no-any-return]


@real_inverse_dft.register_fake
def _(real: torch.Tensor, imag: torch.Tensor, dim: int, size: int, normalization: int) -> torch.Tensor:
    shape = list(real.shape)
    shape[dim] = size
    return real.new_empty(shape)


CONV_BLOCK = torch.ops.torch2trt.conv_block.default
ATTENTION = torch.ops.torch2trt.attention.default
ROTARY = torch.ops.torch2trt.rotary.default
LINEAR_BLOCK = torch.ops.torch2trt.linear_block.default
DFT = torch.ops.torch2trt.dft.default
REAL_INVERSE_DFT = torch.ops.torch2trt.real_inverse_dft.default
FUSED_BLOCKS = frozenset({CONV_BLOCK, LINEAR_BLOCK})
