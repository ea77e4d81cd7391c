"""Operators with kernels of their own, which passes introduce where engines may have plugins."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from torch2trt.graph.writing import writes


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


def _heads(packed: torch.Tensor, start: int, count: int, width: int) -> torch.Tensor:
    """[N, L, count, width] out of [N, L, C], from a channel on."""
    return packed.narrow(-1, start, count * width).unflatten(-1, (count, width))  # type: ignore[no-any-return]


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
        _heads(flat[place], start, count, size)
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
        _heads(packed, start, heads, size).transpose(1, 2)
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
        given = (input, shift, num_groups, weight, bias, eps, silu, tokens)
        return torch.ops.torch2trt.group_norm.out(*given, out=_shape_of_group_norm(*given))  # type: ignore[no-any-return]
    shifted = input if shift is None else input + shift[:, :, None, None]
    result = F.group_norm(shifted, num_groups, weight, bias, eps)
    result = F.silu(result) if silu else result
    return result.permute(0, 2, 3, 1).flatten(1, 2).contiguous() if tokens else torch.empty_like(input).copy_(result)


@group_norm.register_fake
def _shape_of_group_norm(
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


FLASH_ATTENTION = torch.ops.torch2trt.flash_attention.default
DEPTHWISE_CONV = torch.ops.torch2trt.depthwise_conv.default
GROUP_NORM = torch.ops.torch2trt.group_norm.default
PACKED_ATTENTION = torch.ops.torch2trt.packed_attention.default
SHORT_ATTENTION = torch.ops.torch2trt.short_attention.default
