"""Layers that sum over elements: convolution, pooling, normalization, matrix products, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch2trt.reference.readback import Node
from torch2trt.reference.registry import bits, layer, pairs

_CONVOLVE = {2: F.conv2d, 3: F.conv3d}
_CONVOLVE_TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


# Windows --------------------------------------------------------------------------------------------------


@layer("CONVOLUTION", wide=True)
def convolution(node: Node, x: Tensor, kernel: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Correlation of x [..., channels, *sides] with a kernel [maps, channels / groups, *window]."""
    api = node.api
    window, dilation = tuple(api.kernel_size_nd), tuple(api.dilation_nd)
    lead, x = _one_batch(x, len(window) + 1)
    shape = (api.num_output_maps, x.shape[1] // api.num_groups, *window)
    kernel, bias = _weights(node, x, shape, kernel, bias)
    pre, post, extra = _padding(api, x.shape[2:], _extents(window, dilation))
    post = [a + e for a, e in zip(post, extra, strict=True)]
    if pre != post:
        x, pre = F.pad(x, tuple(pairs(pre, post))), [0] * len(pre)
    y = _CONVOLVE[len(window)](x, kernel, bias, tuple(api.stride_nd), pre, dilation, api.num_groups)
    return y.reshape(*lead, *y.shape[1:])


@layer("DECONVOLUTION", wide=True)
def deconvolution(node: Node, x: Tensor, kernel: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The gradient of a convolution; kernel [channels, maps / groups, *window]."""
    api = node.api
    window, stride, dilation = tuple(api.kernel_size_nd), tuple(api.stride_nd), tuple(api.dilation_nd)
    lead, x = _one_batch(x, len(window) + 1)
    shape = (x.shape[1], api.num_output_maps // api.num_groups, *window)
    kernel, bias = _weights(node, x, shape, kernel, bias)
    if api.padding_mode.name.startswith("SAME"):
        total = [max(e - s, 0) for e, s in zip(_extents(window, dilation), stride, strict=True)]
        pre, post = _split(total, api.padding_mode.name)
    else:
        pre, post = list(api.pre_padding), list(api.post_padding)
    y = _CONVOLVE_TRANSPOSED[len(window)](x, kernel, bias, stride, 0, 0, api.num_groups, dilation)
    y = F.pad(y, tuple(-n for n in pairs(pre, post)))
    return y.reshape(*lead, *y.shape[1:])


@layer("POOLING", wide=True)
def pooling(node: Node, x: Tensor) -> Tensor:
    """Maximum, average or a blend of both over windows of the innermost dimensions."""
    api = node.api
    window, kind = tuple(api.window_size_nd), api.type.name
    # Channels do not meet: every leading dimension counts as batch, of which torch allows none.
    lead, sides = x.shape[: -len(window)], x.shape[-len(window) :]
    x = x.reshape(math.prod(lead), 1, *sides)
    if kind == "MAX":
        y = _max_pool(api, x, window)
    elif kind == "AVERAGE":
        y = _average_pool(api, x, window)
    else:
        y = (1 - api.blend_factor) * _max_pool(api, x, window) + api.blend_factor * _average_pool(api, x, window)
    return y.reshape(*lead, *y.shape[2:])


def _weights(
    node: Node, x: Tensor, shape: Sequence[int], kernel: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Kernel and bias, each from an input of the layer or from the layer itself."""
    if kernel is None:
        kernel = node.weights("kernel", shape, x)
    if kernel is None:
        raise node.error("it has no kernel")
    return kernel, node.weights("bias", (-1,), x) if bias is None else bias


def _max_pool(api: Any, x: Tensor, window: tuple[int, ...]) -> Tensor:
    pre, post, extra = _padding(api, x.shape[2:], window)
    x = _pad(_pad(x, pre, post, -math.inf), [0] * len(extra), extra, -math.inf)
    return _MAX_POOL[len(window)](x, window, tuple(api.stride_nd))


def _average_pool(api: Any, x: Tensor, window: tuple[int, ...]) -> Tensor:
    pre, post, extra = _padding(api, x.shape[2:], window)
    post = [a + e for a, e in zip(post, extra, strict=True)]
    # Padding counts unless it is excluded, and with it, unlike in torch, what rounding the output size up adds.
    counted = _pad(x.new_ones(1, 1, *x.shape[2:]), pre, post, 0.0 if api.average_count_excludes_padding else 1.0)
    x = _pad(x, pre, post, 0.0)
    sums = [_AVERAGE_POOL[len(window)](t, window, tuple(api.stride_nd), divisor_override=1) for t in (x, counted)]
    return sums[0] / sums[1]


def _pad(x: Tensor, pre: Sequence[int], post: Sequence[int], value: float) -> Tensor:
    return F.pad(x, tuple(pairs(pre, post)), value=value) if any((*pre, *post)) else x


def _padding(api: Any, sides: Sequence[int], extents: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Padding before and after, and what a last window needs further where the output size is rounded up."""
    mode, strides = api.padding_mode.name, tuple(api.stride_nd)
    extra = [0] * len(extents)
    if mode.startswith("SAME"):
        total = [(n - 1) // s * s + e - n for n, s, e in zip(sides, strides, extents, strict=True)]
        return *_split([max(t, 0) for t in total], mode), extra
    pre, post = list(api.pre_padding), list(api.post_padding)
    if mode == "EXPLICIT_ROUND_UP":
        whole = (n + b + a - e for n, b, a, e in zip(sides, pre, post, extents, strict=True))
        extra = [-w % s for w, s in zip(whole, strides, strict=True)]
    return pre, post, extra


def _split(total: list[int], mode: str) -> tuple[list[int], list[int]]:
    less = [t // 2 for t in total]
    more = [t - n for t, n in zip(total, less, strict=True)]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _extents(window: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How far a dilated window reaches."""
    return [1 + d * (k - 1) for k, d in zip(window, dilation, strict=True)]


def _one_batch(x: Tensor, rank: int) -> tuple[torch.Size, Tensor]:
    """The leading dimensions, and x with those as one."""
    lead = x.shape[:-rank]
    return lead, x.reshape(math.prod(lead), *x.shape[-rank:])


# Normalization --------------------------------------------------------------------------------------------


@layer("NORMALIZATION", wide=True)
def normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``(x − mean) / √(variance + epsilon) · scale + bias`` over axes, and over channels of a group."""
    groups, axes, shape = node.api.num_groups, bits(node.api.axes), x.shape
    if groups > 1:
        # Channels split into groups; each group's channels are averaged together with the axes.
        x = x.reshape(shape[0], groups, shape[1] // groups, *shape[2:])
        axes = [2, *(axis + 1 for axis in axes if axis > 1)]
        scale, bias = (_per_channel(t, shape[1]) for t in (scale, bias))
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    y: Tensor = centred * (variance + node.api.epsilon).rsqrt()
    return y.reshape(shape) * scale + bias


def _per_channel(t: Tensor, channels: int) -> Tensor:
    """The first form of group normalization takes one value a group, the second one a channel."""
    return t.repeat_interleave(channels // t.shape[1], 1)


@layer("LRN", wide=True)
def lrn(node: Node, x: Tensor) -> Tensor:
    """``x / (k + alpha / window · Σ x²) ^ beta``, the sum over neighbouring channels."""
    api = node.api
    return F.local_response_norm(x, api.window_size, api.alpha, api.beta, api.k)


@layer("SOFTMAX", wide=True)
def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax over one axis."""
    (axis,) = bits(node.api.axes)
    return x.softmax(axis)


@layer("RAGGED_SOFTMAX", wide=True)
def ragged_softmax(node: Node, x: Tensor, bounds: Tensor) -> Tensor:
    """Softmax over the first elements of each row, as many as bounds [..., 1] say; zero behind them."""
    inside = torch.arange(x.shape[-1], device=x.device) < bounds
    return x.masked_fill(~inside, -math.inf).softmax(-1).masked_fill(~inside, 0)


# Products and reductions ----------------------------------------------------------------------------------


@layer("MATRIX_MULTIPLY", wide=True)
def matrix_multiply(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """``op0(a) · op1(b)``, where each may be transposed or be taken for vectors."""
    left, right = node.api.op0.name, node.api.op1.name
    a = {"NONE": a, "TRANSPOSE": a.mT, "VECTOR": a.unsqueeze(-2)}[left]
    b = {"NONE": b, "TRANSPOSE": b.mT, "VECTOR": b.unsqueeze(-1)}[right]
    y = a @ b
    if right == "VECTOR":
        y = y.squeeze(-1)
    return y.squeeze(-1 if right == "VECTOR" else -2) if left == "VECTOR" else y


@layer("EINSUM", wide=True)
def einsum(node: Node, *operands: Tensor) -> Tensor:
    """Einstein summation."""
    return torch.einsum(node.api.equation, *operands)


# By the names of ReduceOperation: x, axes, keep_dims.
_REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "SUM": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "MAX": lambda x, axes, keep: _or_bound(x, axes, "min").amax(axes, keepdim=keep),
    "MIN": lambda x, axes, keep: _or_bound(x, axes, "max").amin(axes, keepdim=keep),
    "PROD": lambda x, axes, keep: _product(x, axes, keep),
    "AVG": lambda x, axes, keep: _average(x, axes, keep),
}


@layer("REDUCE", wide=True)
def reduce(node: Node, x: Tensor) -> Tensor:
    """One of ReduceOperation over axes; integer sums wrap around, and integer averages truncate."""
    return _REDUCE[node.api.op.name](x, bits(node.api.axes), node.api.keep_dims)


def _or_bound(x: Tensor, axes: list[int], end: str) -> Tensor:
    """The tensor, or the dtype's own bound where there is nothing to reduce: torch then refuses, TensorRT does not."""
    if all(x.shape[axis] for axis in axes):
        return x
    infinite = {"min": -math.inf, "max": math.inf}[end]
    bound = infinite if x.is_floating_point() else getattr(torch.iinfo(x.dtype), end)
    return x.new_full([1 if axis in axes else size for axis, size in enumerate(x.shape)], bound)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _average(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return x.sum(axes, keepdim=keep, dtype=x.dtype).div(count, rounding_mode="trunc")


@layer("CUMULATIVE", wide=True)
def cumulative(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Sums up to each element along an axis: from either end, with or without the element itself."""
    api, dim = node.api, int(axis)
    if api.reverse:
        x = x.flip(dim)
    y = x.cumsum(dim, dtype=x.dtype)
    if api.exclusive:
        y = y.roll(1, dim).index_fill(dim, torch.zeros(1, dtype=torch.int64, device=x.device), 0)
    return y.flip(dim) if api.reverse else y
