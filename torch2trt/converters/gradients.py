"""Gradients of windows: torch's backward operators of pooling and convolution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch2trt.converters.convolution import convolution
from torch2trt.converters.folding import folded, laid
from torch2trt.converters.reasons import only_floats
from torch2trt.converters.reductions import accumulated
from torch2trt.converters.registry import converter
from torch2trt.converters.windows import Lane, lanes_of
from torch2trt.sizes import TensorSpec, volume
from torch2trt.trt.network import Network
from torch2trt.trt.shaping import is_static
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _unsupported(spatial: int) -> Callable[..., str | None]:
    def unsupported(grad_output: TensorSpec, input: TensorSpec, **_: Any) -> str | None:
        if not is_static((*grad_output.shape[-spatial:], *input.shape[-spatial:])):
            return "the gradient of windows over a dynamic size"
        return only_floats(grad_output=grad_output, input=input)

    return unsupported


# -- pooling -----------------------------------------------------------------------------------------------------------


def _of_averages(net: Network, grad: Tensor, covers: Sequence[torch.Tensor], counts: torch.Tensor) -> Tensor:
    """The gradient of averages.

    Args:
        grad: [*others, *windows].
        covers: BOOL [size, windows] of each dimension, whether a window has an element.
        counts: what the windows' sums were divided by, of a shape that broadcasts to [*windows].
    """
    result = net.elementwise("DIV", accumulated(net, grad, None), net.constant(counts.float()))
    for axis, covered in enumerate(covers):
        result = laid(net, result, grad.rank - len(covers) + axis, covered)
    return net.cast(result, grad.dtype)


def _counts(lengths: Sequence[torch.Tensor]) -> torch.Tensor:
    rows, columns = lengths
    return rows[:, None] * columns


@converter(aten.avg_pool2d_backward.default, unsupported=_unsupported(2))
def avg_pool2d_backward(
    net: Network,
    grad_output: Tensor,
    input: Tensor,
    count_include_pad: bool,
    divisor_override: int | None,
    **arguments: Any,
) -> Tensor:
    """avg_pool2d_backward(Tensor grad_output, Tensor self, int[2] kernel_size, int[2] stride, ...) -> Tensor"""
    covers, lengths = [], []
    for axis, lane in enumerate(lanes_of(2, **arguments), -2):
        size, count = int(input.shape[axis]), int(grad_output.shape[axis])
        covers.append((lane.places(count) == torch.arange(size)[:, None, None]).any(1))
        padded = (lane.places(count) < size + lane.padding).sum(0)
        lengths.append(padded if count_include_pad else covers[-1].sum(0))
    counts = _counts(lengths) if divisor_override is None else torch.tensor(divisor_override)
    return _of_averages(net, grad_output, covers, counts)


@converter(aten._adaptive_avg_pool2d_backward.default, unsupported=_unsupported(2))
def adaptive_avg_pool2d_backward(net: Network, grad_output: Tensor, input: Tensor) -> Tensor:
    """_adaptive_avg_pool2d_backward(Tensor grad_output, Tensor self) -> Tensor"""
    covers = []
    for size, count in zip(input.shape[-2:], grad_output.shape[-2:], strict=True):
        starts, stops = (torch.arange(first, int(count) + first) * int(size) for first in (0, 1))
        place = torch.arange(int(size))[:, None]
        covers.append((place >= starts // int(count)) & (place < -(-stops // int(count))))
    return _of_averages(net, grad_output, covers, _counts([covered.sum(0) for covered in covers]))


def _coordinates(net: Network, places: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Where places in dimensions taken as one are in each of them, of INT32."""
    found: list[Tensor] = []
    rest = net.cast(places, torch.int32)
    for size in reversed(sizes[1:]):
        width = net.tensor(size, torch.int32)
        above = net.elementwise("FLOOR_DIV", rest, width)
        found.append(net.elementwise("SUB", rest, net.elementwise("PROD", above, width)))
        rest = above
    return [rest, *reversed(found)]


def _max_pool_backward(spatial: int) -> Callable[..., Tensor]:
    def backward(net: Network, grad_output: Tensor, input: Tensor, indices: Tensor, **arguments: Any) -> Tensor:
        """max_pool2d_with_indices_backward(Tensor grad_output, Tensor self, ..., Tensor indices) -> Tensor"""
        lanes = lanes_of(spatial, **arguments)
        sizes, counts = ([int(size) for size in tensor.shape[-spatial:]] for tensor in (input, grad_output))
        planes = volume(grad_output.shape[:-spatial])
        grad, places = (net.reshape(each, (planes, *(1,) * spatial, *counts)) for each in (grad_output, indices))
        # For each place in the windows, the gradient of those whose largest element was there.
        chosen = []
        for axis, (found, lane) in enumerate(zip(_coordinates(net, places, sizes), lanes, strict=True)):
            shape = [1] * 2 * spatial
            shape[axis], shape[spatial + axis] = lane.window, counts[axis]
            along = net.constant(lane.places(counts[axis]).int().reshape(1, *shape))
            chosen.append(net.elementwise("EQUAL", found, along))
        wide = accumulated(net, grad, None)
        apart = net.select(functools.reduce(functools.partial(net.elementwise, "AND"), chosen), wide, net.tensor(0.0))
        return net.cast(net.reshape(folded(net, apart, sizes, lanes), input.shape), input.dtype)

    return backward


for _spatial in (2, 3):
    _target = getattr(aten, f"max_pool{_spatial}d_with_indices_backward").default
    converter(_target, unsupported=_unsupported(_spatial))(_max_pool_backward(_spatial))


# -- convolution -------------------------------------------------------------------------------------------------------


def _convolution_unsupported(
    grad_output: TensorSpec, input: TensorSpec, weight: TensorSpec, output_mask: Sequence[bool], **_: Any
) -> str | None:
    if not is_static((*weight.shape, *grad_output.shape[1:], *input.shape[1:])):
        return "the gradient of a convolution over a dynamic size"
    return only_floats(grad_output=grad_output, input=input, weight=weight)


def _of_input(
    net: Network,
    grad: Tensor,
    sizes: Sequence[int],
    weight: Tensor,
    lanes: Sequence[Lane],
    transposed: bool,
    groups: int,
) -> Tensor:
    stride, padding, dilation = ([getattr(lane, name) for lane in lanes] for name in ("stride", "padding", "dilation"))
    missing = [0] * len(lanes)
    if not transposed:
        # Elements behind the last window, whose gradient is zero.
        missing = [
            size - lane.size_of(int(count)) for size, count, lane in zip(sizes, grad.shape[2:], lanes, strict=True)
        ]
    result = convolution(net, grad, weight, None, stride, padding, dilation, not transposed, missing, groups)
    for axis, size in enumerate(sizes, 2):
        result = net.narrow(result, axis, 0, size)
    return result


def _of_weight(net: Network, windows: Tensor, whole: Tensor, lanes: Sequence[Lane], groups: int) -> Tensor:
    """The gradient of a weight as a matrix product, by group.

    Args:
        windows: [N, K, *counts].
        whole: [N, C, *sizes], in which they lie.

    Returns:
        [K, C // groups, *window].
    """
    spatial = len(lanes)
    padding = [0, 0, *(lane.padding for lane in lanes)]
    patches = net.pad(whole, padding, padding) if any(padding) else whole
    items, *planes = patches.shape
    patches = net.reshape(patches, (items * planes[0], *planes[1:]))  # of volumes there would be more than 7 dimensions
    for axis, lane in enumerate(lanes):
        places = lane.places(int(windows.shape[axis + 2])) + lane.padding
        patches = net.gather(patches, net.constant(places), 1 + 2 * axis)
    # [N * C, window, count, window, count] as [C, windows, N, counts].
    patches = net.permute(patches, [0, *range(1, 1 + 2 * spatial, 2), *range(2, 2 + 2 * spatial, 2)])
    window = volume(lane.window for lane in lanes)
    patches = net.reshape(patches, (items, planes[0], window, volume(windows.shape[2:])))
    patches = net.permute(patches, [1, 2, 0, 3])
    entries = volume((windows.shape[0], *windows.shape[2:]))
    maps, channels = int(windows.shape[1]), int(whole.shape[1]) // groups
    width = channels * window
    rows = net.permute(windows, [1, 0, *range(2, windows.rank)])
    first = net.reshape(rows, (groups, maps // groups, entries))
    product = net.matmul(first, net.reshape(patches, (groups, width, entries)), transpose_second=True)
    return net.reshape(product, (maps, channels, *(lane.window for lane in lanes)))


@converter(aten.convolution_backward.default, unsupported=_convolution_unsupported)
def convolution_backward(
    net: Network,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    transposed: bool,
    groups: int,
    output_mask: Sequence[bool],
    **arguments: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """convolution_backward(Tensor grad_output, Tensor input, Tensor weight, ..., bool[3] output_mask)"""
    sizes = [int(size) for size in input.shape[2:]]
    lanes = lanes_of(weight.rank - 2, kernel_size=weight.shape[2:], **arguments)
    # The one has an element where the other has a window.
    windows, whole = (input, grad_output) if transposed else (grad_output, input)
    summed = [0, *range(2, grad_output.rank)]
    return (
        _of_input(net, grad_output, sizes, weight, lanes, transposed, groups) if output_mask[0] else None,
        _of_weight(net, windows, whole, lanes, groups) if output_mask[1] else None,
        net.reduce("SUM", grad_output, summed, keep_dims=False) if output_mask[2] else None,
    )
