"""Windows laid back into the image that they were cut from, the inverse of ``torch.nn.functional.unfold``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.reductions import accumulated
from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec, volume
from torch2trt.trt.network import Network
from torch2trt.trt.shaping import is_static
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _sources(size: int, window: int, count: int, dilation: int, padding: int, stride: int) -> torch.Tensor:
    """Which elements of [window * count] lie on each place of a dimension, [size, most]; ``window * count`` is none."""
    places = torch.arange(window)[:, None] * dilation + torch.arange(count) * stride - padding
    on_place = places.flatten() == torch.arange(size)[:, None]
    most = max(1, int(on_place.sum(1).max()))
    # A stable sort brings those on the place to the front, in order.
    hits, sources = on_place.sort(dim=1, descending=True, stable=True)
    return torch.where(hits, sources, window * count)[:, :most]


def _laid(net: Network, tensor: Tensor, axis: int, sources: torch.Tensor) -> Tensor:
    """Every place of a dimension as the sum of the elements that lie on it."""
    count = tensor.shape[axis]
    if (sources == count).any():
        none = [0] * tensor.rank
        tensor = net.pad(tensor, none, [int(other == axis) for other in range(tensor.rank)])
    picked = net.gather(tensor, net.constant(sources), axis)
    return net.reduce("SUM", picked, [axis + 1], False)


def _unsupported(input: TensorSpec, output_size: Sequence[Size], **_: Any) -> str | None:
    if not is_static([*output_size, *input.shape[-2:]]):
        return "folds into an image of dynamic size"
    return None


@converter(aten.col2im.default, unsupported=_unsupported)
def col2im(
    net: Network,
    input: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """col2im(Tensor self, SymInt[2] output_size, int[2] kernel_size, int[2] dilation, int[2] padding, int[2] stride)"""
    geometry = list(zip(output_size, kernel_size, dilation, padding, stride, strict=True))
    counts = [(size + 2 * pad - reach * (window - 1) - 1) // step + 1 for size, window, reach, pad, step in geometry]
    planes = volume(net.result.shape[:-2])
    # [planes, window, window, count, count] as [planes, window * count, window * count].
    apart = net.reshape(accumulated(net, input, None), (planes, *kernel_size, *counts))
    lengths = [window * count for window, count in zip(kernel_size, counts, strict=True)]
    image = net.reshape(net.permute(apart, (0, 1, 3, 2, 4)), (planes, *lengths))
    for axis, (size, window, reach, pad, step) in enumerate(geometry):
        image = _laid(net, image, axis + 1, _sources(size, window, counts[axis], reach, pad, step))
    return net.cast(net.reshape(image, net.result.shape), net.result.dtype)
