"""Windows over integers, cut out and added up: TensorRT convolves and pools in floating point only."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch2trt.converters.folding import folded
from torch2trt.converters.windows import Lane
from torch2trt.sizes import volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor


def cut(net: Network, input: Tensor, lanes: Sequence[Lane], counts: Sequence[int]) -> Tensor:
    """Windows over the last dimensions, with zeros in the padding.

    Args:
        input: [*others, *sizes].
        counts: how many windows there are along each dimension.

    Returns:
        [planes, *window, *counts], the others taken as one.
    """
    depth = len(lanes)
    sizes = input.shape[-depth:]
    planes = net.reshape(input, (volume(input.shape[:-depth]), *sizes))
    places = [lane.places(count) for lane, count in zip(lanes, counts, strict=True)]
    before = [max(0, -int(where.min())) for where in places]
    after = [max(0, int(where.max()) + 1 - int(size)) for where, size in zip(places, sizes, strict=True)]
    windows = net.pad(planes, [0, *before], [0, *after])
    for axis in reversed(range(depth)):
        windows = net.gather(windows, net.constant(places[axis] + before[axis]), 1 + axis)
    # Each dimension has become two, the places in a window and the windows.
    return net.permute(windows, (0, *range(1, 2 * depth, 2), *range(2, 2 * depth + 1, 2)))


def integer_convolution(
    net: Network, input: Tensor, weight: Tensor, lanes: Sequence[Lane], counts: Sequence[int], groups: int
) -> Tensor:
    """A convolution without a bias: [batch, channels, *sizes] and [outputs, ...] to [batch, outputs, *counts]."""
    batch = input.shape[0]
    outputs, *kernel = weight.shape
    taken = net.reshape(cut(net, input, lanes, counts), (batch, groups, volume(kernel), volume(counts)))
    filters = net.reshape(weight, (groups, outputs // groups, volume(kernel)))
    return net.reshape(net.matmul(filters, taken), (batch, outputs, *counts))


def transposed_convolution(
    net: Network, input: Tensor, weight: Tensor, lanes: Sequence[Lane], sizes: Sequence[int], groups: int
) -> Tensor:
    """Its transpose: [batch, channels, *counts] and [channels, outputs / groups, ...] to [batch, outputs, *sizes]."""
    batch, channels, *counts = input.shape
    _, each, *window = weight.shape
    inputs = net.reshape(input, (batch, groups, channels // groups, volume(counts)))
    filters = net.reshape(weight, (groups, channels // groups, volume([each, *window])))
    spread = net.matmul(filters, inputs, transpose_first=True)
    outputs = each * groups
    windows = net.reshape(spread, (batch * outputs, *window, *counts))
    return net.reshape(folded(net, windows, sizes, lanes), (batch, outputs, *sizes))


def integer_average(
    net: Network, input: Tensor, lanes: Sequence[Lane], counts: Sequence[int], numbers: torch.Tensor
) -> Tensor:
    """The sums of windows over the last dimensions, divided by numbers [*counts] and rounded towards zero."""
    windows = cut(net, input, lanes, counts)
    sums = net.reduce("SUM", windows, range(1, 1 + len(lanes)), keep_dims=False)
    means = net.elementwise("DIV", sums, net.constant(numbers.to(input.dtype)))
    return net.reshape(means, (*input.shape[: -len(lanes)], *counts))
