"""Windows laid back into the image that they were cut from, the inverse of ``torch.nn.functional.unfold``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.reductions import accumulated
from torch2trt.converters.registry import converter
from torch2trt.converters.windows import Lane, lanes_of
from torch2trt.sizes import Size, TensorSpec, volume
from torch2trt.trt.network import Network
from torch2trt.trt.shaping import is_static
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def laid(net: Network, tensor: Tensor, axis: int, covers: torch.Tensor) -> Tensor:
    """Every place of a dimension as the sum of the elements that lie on it.

    Args:
        tensor: with ``elements`` in the dimension, of float32 or int64.
        covers: BOOL [places, elements], whether an element lies on a place.
    """
    most = max(1, int(covers.sum(1).max()))
    # A stable sort brings those on the place to the front, in order; a zero behind the last stands for none.
    hits, sources = covers.sort(dim=1, descending=True, stable=True)
    sources = torch.where(hits, sources, covers.shape[1])[:, :most]
    if (sources == covers.shape[1]).any():
        none = [0] * tensor.rank
        tensor = net.pad(tensor, none, [int(other == axis) for other in range(tensor.rank)])
    return net.reduce("SUM", net.gather(tensor, net.constant(sources), axis), [axis + 1], False)


def folded(net: Network, windows: Tensor, sizes: Sequence[int], lanes: Sequence[Lane]) -> Tensor:
    """Windows added up where they lie: [planes, *window, *counts] becomes [planes, *sizes]."""
    depth = len(lanes)
    counts = [int(count) for count in windows.shape[1 + depth :]]
    # [planes, window * count, window * count].
    order = [0, *(1 + axis + side for axis in range(depth) for side in (0, depth))]
    lengths = [lane.window * count for lane, count in zip(lanes, counts, strict=True)]
    image = net.reshape(net.permute(windows, order), (windows.shape[0], *lengths))
    for axis, (size, lane, count) in enumerate(zip(sizes, lanes, counts, strict=True), 1):
        image = laid(net, image, axis, lane.places(count).flatten() == torch.arange(size)[:, None])
    return image


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
    lanes = lanes_of(2, kernel_size, stride, padding, dilation)
    counts = [lane.count_in(size) for size, lane in zip(output_size, lanes, strict=True)]
    apart = net.reshape(accumulated(net, input, None), (volume(net.result.shape[:-2]), *kernel_size, *counts))
    image = folded(net, apart, output_size, lanes)
    return net.cast(net.reshape(image, net.result.shape), net.result.dtype)
