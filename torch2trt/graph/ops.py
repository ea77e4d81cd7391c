"""Operators that passes introduce, as real torch operators, so that a Program stays executable after fusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from torch2trt.graph.writing import writes

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


@torch.library.custom_op("torch2trt::flash_attention", mutates_args=())
def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scale: float
) -> torch.Tensor:
    """Attention by torch's own kernels (FlashAttention, cuDNN's), which keep no scores in memory.

    Heads lie behind tokens, as projections leave them and these kernels read them.

    Args:
        query: [N, L, H, E].
        key: [N, S, G, E]; G divides H, and as many queries in a row share a key.
        value: [N, S, G, V].
        is_causal: whether a query attends to those keys alone that do not come after it.
        scale: of the scores.

    Returns:
        [N, L, H, V], contiguous.
    """
    grouped = key.shape[2] != query.shape[2]
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    result = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale, enable_gqa=grouped)
    return result.transpose(1, 2).contiguous()


@flash_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scale: float) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op("torch2trt::packed_attention", mutates_args=())
def packed_attention(
    sources: list[torch.Tensor],
    places: list[int],
    starts: list[int],
    heads: int,
    groups: int,
    width: int,
    value_width: int,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    """:func:`flash_attention` of queries, keys and values that lie side by side, as one projection yields them.

    Args:
        sources: [N, L, C], or with more dimensions in the place of C that make up the channels.
        places: which of the sources queries, keys and values lie in.
        starts: their first channels there.
        heads: H, of queries.
        groups: G, of keys and values.
        width: E, channels of a query and a key.
        value_width: V, channels of a value.
        is_causal, scale: as of :func:`flash_attention`.

    Returns:
        [N, L, H, V], contiguous.
    """
    flat = [source.flatten(2) for source in sources]
    query, key, value = (
        flat[place].narrow(-1, start, count * size).unflatten(-1, (count, size))
        for place, start, count, size in zip(
            places, starts, (heads, groups, groups), (width, width, value_width), strict=True
        )
    )
    return torch.ops.torch2trt.flash_attention(query, key, value, is_causal, scale)  # type: ignore[no-any-return]


@packed_attention.register_fake
def _(
    sources: list[torch.Tensor],
    places: list[int],
    starts: list[int],
    heads: int,
    groups: int,
    width: int,
    value_width: int,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    query = sources[places[0]]
    return query.new_empty((*query.shape[:2], heads, value_width))


@torch.library.custom_op("torch2trt::short_attention", mutates_args=())
def short_attention(
    packed: torch.Tensor,
    starts: list[int],
    heads: int,
    width: int,
    value_width: int,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attention among few tokens, with numbers that are added to the scores.

    On CUDA a kernel in Triton computes it in halves, with scores and sums in float32.

    Args:
        packed: [N, L, C], with queries, keys and values side by side, as one projection yields them; L of 256 at most.
        starts: the first channels of queries, keys and values.
        heads: H.
        width: E, channels of a query and a key; 128 at most.
        value_width: V, channels of a value; 128 at most.
        bias: [M, H or 1, L, S], of packed's dtype, finite or minus infinity; entry n of the batch has that of n % M,
            and S may be more than L: what is beyond is not used.
        scale: of the scores, before anything is added.

    Returns:
        [N, L, H, V], contiguous; zeros for queries that attend to nothing.
    """
    if packed.is_cuda and packed.dtype in (torch.float16, torch.bfloat16):
        result = _shape_of_short_attention(packed, starts, heads, width, value_width, bias, scale)
        return torch.ops.torch2trt.short_attention.out(  # type: ignore[no-any-return]
            packed, starts, heads, width, value_width, bias, scale, out=result
        )
    query, key, value = (
        packed.narrow(-1, start, heads * size).unflatten(-1, (heads, size)).transpose(1, 2)
        for start, size in zip(starts, (width, width, value_width), strict=True)
    )
    if bias is not None:
        entries = torch.arange(packed.shape[0], device=packed.device) % bias.shape[0]
        bias = bias[entries, ..., : packed.shape[1]]
    return F.scaled_dot_product_attention(query, key, value, bias, scale=scale).transpose(1, 2).contiguous()


@short_attention.register_fake
def _shape_of_short_attention(
    packed: torch.Tensor,
    starts: list[int],
    heads: int,
    width: int,
    value_width: int,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    return packed.new_empty((*packed.shape[:-1], heads, value_width))


@writes(short_attention)
def _(
    packed: torch.Tensor,
    starts: list[int],
    heads: int,
    width: int,
    value_width: int,
    bias: torch.Tensor | None,
    scale: float,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    from torch2trt.graph import short_attention_kernel as kernel

    bias = None if bias is None else bias.contiguous()
    return kernel.short_attention(packed.contiguous(), starts, heads, width, value_width, bias, scale, out)


@torch.library.custom_op("torch2trt::depthwise_conv", mutates_args=())
def depthwise_conv(
    input: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None, padding: list[int]
) -> torch.Tensor:
    """A convolution of each channel with a window of its own, of channels-last images.

    On CUDA a kernel in Triton computes it, summing in float32.

    Args:
        input: [N, H, W, C].
        taps: [KH, KW, C].
        bias: [C].
        padding: zeros above and below, and on both sides.

    Returns:
        [N, H + 2 * padding[0] - KH + 1, W + 2 * padding[1] - KW + 1, C], contiguous.
    """
    if input.is_cuda and input.dtype != torch.float64:
        return torch.ops.torch2trt.depthwise_conv.out(  # type: ignore[no-any-return]
            input, taps, bias, padding, out=_shape_of_depthwise_conv(input, taps, bias, padding)
        )
    weight = taps.permute(2, 0, 1).unsqueeze(1)
    result = F.conv2d(input.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=weight.shape[0])
    return result.permute(0, 2, 3, 1).contiguous()


@depthwise_conv.register_fake
def _shape_of_depthwise_conv(
    input: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None, padding: list[int]
) -> torch.Tensor:
    rows, columns = (
        size + 2 * own - window + 1 for size, own, window in zip(input.shape[1:3], padding, taps.shape[:2], strict=True)
    )
    return input.new_empty((input.shape[0], rows, columns, input.shape[3]))


@writes(depthwise_conv)
def _(
    input: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None, padding: list[int], *, out: torch.Tensor
) -> torch.Tensor:
    from torch2trt.graph.depthwise_kernel import depthwise

    return depthwise(input.contiguous(), taps.contiguous(), bias, padding, out)


@torch.library.custom_op("torch2trt::group_norm", mutates_args=())
def group_norm(
    input: torch.Tensor,
    shift: torch.Tensor | None,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    silu: bool,
    tokens: bool,
) -> torch.Tensor:
    """Normalised groups of channels, after a sum and before an activation.

    On CUDA kernels in Triton compute it, in float32; they read and write channels-last images.

    Args:
        input: [N, C, H, W].
        shift: [N, C], which is added to each pixel before.
        num_groups: divides C.
        weight, bias: [C], of the normalised images.
        eps: is added to the variance.
        silu: whether SiLU follows.
        tokens: whether pixels become tokens.

    Returns:
        [N, C, H, W], in memory as the input is; tokens [N, H * W, C], contiguous.
    """
    if input.is_cuda and input.dtype != torch.float64:
        from torch2trt.graph.group_norm_kernel import group_norm

        last = input.contiguous(memory_format=torch.channels_last)
        shift, weight, bias = (None if each is None else each.contiguous() for each in (shift, weight, bias))
        result = group_norm(last, shift, num_groups, weight, bias, eps, silu=silu)
        if last is input and not tokens:
            return result
    else:
        shifted = input if shift is None else input + shift[:, :, None, None]
        result = F.group_norm(shifted, num_groups, weight, bias, eps)
        result = F.silu(result) if silu else result
    # Of channels-last images no copy.
    return result.permute(0, 2, 3, 1).flatten(1, 2).contiguous() if tokens else torch.empty_like(input).copy_(result)


@group_norm.register_fake
def _(
    input: torch.Tensor,
    shift: torch.Tensor | None,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    silu: bool,
    tokens: bool,
) -> torch.Tensor:
    count, channels, height, width = input.shape
    return input.new_empty(count, height * width, channels) if tokens else torch.empty_like(input)


@writes(group_norm)
def _(
    input: torch.Tensor,
    shift: torch.Tensor | None,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    silu: bool,
    tokens: bool,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    from torch2trt.graph.group_norm_kernel import group_norm

    last = input.contiguous(memory_format=torch.channels_last)
    shift, weight, bias = (None if each is None else each.contiguous() for each in (shift, weight, bias))
    images = out.unflatten(1, input.shape[2:]).permute(0, 3, 1, 2) if tokens else out
    if images.is_contiguous(memory_format=torch.channels_last):
        group_norm(last, shift, num_groups, weight, bias, eps, silu=silu, out=images)
        return out
    return out.copy_(group_norm(last, shift, num_groups, weight, bias, eps, silu=silu))


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
FLASH_ATTENTION = torch.ops.torch2trt.flash_attention.default
DEPTHWISE_CONV = torch.ops.torch2trt.depthwise_conv.default
GROUP_NORM = torch.ops.torch2trt.group_norm.default
PACKED_ATTENTION = torch.ops.torch2trt.packed_attention.default
SHORT_ATTENTION = torch.ops.torch2trt.short_attention.default
LINEAR_BLOCK = torch.ops.torch2trt.linear_block.default
DFT = torch.ops.torch2trt.dft.default
REAL_INVERSE_DFT = torch.ops.torch2trt.real_inverse_dft.default
FUSED_BLOCKS = frozenset({CONV_BLOCK, LINEAR_BLOCK})
