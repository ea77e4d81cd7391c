"""Windows laid out element by element, where TensorRT's pooling does not serve: largest elements and where they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._sympy.functions import FloorDiv

from torch2trt.sizes import Size, simplify, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor


@dataclass(frozen=True)
class Lane:
    """How windows of one extent lie along one dimension.

    Attributes:
        window: the number of elements.
        dilation: the distance between them.
        stride: the distance between windows.
        padding: the number of places before the first element of the dimension.
    """

    window: int
    stride: int
    padding: int
    dilation: int

    def places(self, count: int) -> torch.Tensor:
        """Where the elements of so many windows are, INT64 [window, count]; some may be in the padding."""
        return torch.arange(self.window)[:, None] * self.dilation + torch.arange(count) * self.stride - self.padding

    def size_of(self, count: int) -> int:
        """The size of a dimension that so many windows fill."""
        return (count - 1) * self.stride - 2 * self.padding + self.dilation * (self.window - 1) + 1

    def count_in(self, size: int) -> int:
        """How many windows there are in a dimension."""
        return (size - self.size_of(1)) // self.stride + 1


def full(spatial: int, values: int | Sequence[int]) -> list[int]:
    """Numbers for each dimension, where one may stand for all."""
    values = [values] if isinstance(values, int) else list(values)
    return values * spatial if len(values) == 1 else values


def lanes_of(
    spatial: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1,),
    **_: Any,
) -> list[Lane]:
    """The lanes that an operator's arguments describe."""
    given = (kernel_size, stride or kernel_size, padding, dilation)
    return [Lane(*each) for each in zip(*(full(spatial, values) for values in given), strict=True)]


@dataclass(frozen=True)
class Windows:
    """The windows along one dimension.

    Attributes:
        places: INT64 [windows, extent], where their elements are, moved inside.
        inside: BOOL of the same shape; None where all of them were.
    """

    places: Tensor
    inside: Tensor | None = None


def regular(net: Network, size: Size, count: Size, *, extent: int, stride: int, padding: int, dilation: int) -> Windows:
    """Windows of one extent at equal distances."""
    starts = net.iota(-padding, stride, count, torch.int64)
    wanted = _each(net, starts, net.iota(0, dilation, extent, torch.int64))
    last = net.tensor(size - 1, torch.int64)
    places = net.elementwise("MIN", net.binary("MAX", wanted, 0), last)
    return Windows(places, net.elementwise("EQUAL", places, wanted))


def adaptive(net: Network, size: Size, count: Size) -> Windows:
    """As many windows as asked for, which may overlap; the last element of the shorter ones is there twice."""
    starts, stops = bounds(net, size, count)
    most = simplify(FloorDiv(size + count - 1, count))
    extent = most if size == most * count else most + 1
    last = net.unsqueeze(net.binary("SUB", stops, 1), 1)
    return Windows(net.elementwise("MIN", _each(net, starts, net.iota(0, 1, extent, torch.int64)), last))


def bounds(net: Network, size: Size, count: Size) -> tuple[Tensor, Tensor]:
    """Where each of a number of windows over a dimension starts, and where it has stopped: INT64 [count]."""
    numbers = net.iota(0, 1, count, torch.int64)
    whole, parts = net.tensor(size, torch.int64), net.tensor(count, torch.int64)
    starts = net.elementwise("PROD", numbers, whole)
    stops = net.elementwise("SUM", starts, net.tensor(size + count - 1, torch.int64))
    return net.elementwise("FLOOR_DIV", starts, parts), net.elementwise("FLOOR_DIV", stops, parts)


def _each(net: Network, starts: Tensor, offsets: Tensor) -> Tensor:
    return net.elementwise("SUM", net.unsqueeze(starts, 1), net.unsqueeze(offsets, 0))


def largest(net: Network, input: Tensor, windows: Sequence[Windows]) -> tuple[Tensor, Tensor]:
    """The largest element of each window over the last dimensions, and the first place where it is.

    Returns:
        The elements, and INT64 places in the last dimensions taken as one, both [*others, *windows].
    """
    depth = len(windows)
    sizes = input.shape[-depth:]
    others = input.rank - depth
    counts = [lane.places.shape[0] for lane in windows]
    extents = [lane.places.shape[1] for lane in windows]

    def spread(tensor: Tensor, axis: int) -> Tensor:
        shape: list[Size] = [1] * 2 * depth
        shape[axis], shape[depth + axis] = tensor.shape
        return net.reshape(tensor, shape)

    def together(tensors: Sequence[Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return net.reshape(functools.reduce(join, tensors), (*counts, volume(extents)))

    weights = [net.tensor(volume(sizes[axis + 1 :]), torch.int64) for axis in range(depth)]
    places = together(
        [
            spread(net.elementwise("PROD", lane.places, weight), axis)
            for axis, (lane, weight) in enumerate(zip(windows, weights, strict=True))
        ],
        functools.partial(net.elementwise, "SUM"),
    )
    flat = net.reshape(input, (*input.shape[:others], volume(sizes)))
    elements = net.gather(flat, places, others)
    is_float = input.dtype.is_floating_point
    if is_float:
        # Of nothing but infinities TensorRT takes the lowest finite number as the largest.
        elements = net.elementwise("MAX", elements, net.tensor(torch.finfo(input.dtype).min, input.dtype))
    last = net.tensor(volume(sizes) - 1, torch.int64)
    if all(lane.inside is not None for lane in windows):
        inside = together(
            [spread(lane.inside, axis) for axis, lane in enumerate(windows) if lane.inside is not None],
            functools.partial(net.elementwise, "AND"),
        )
        lowest = -math.inf if is_float else torch.iinfo(input.dtype).min
        elements = net.select(inside, elements, net.tensor(lowest, input.dtype))
        places = net.select(inside, places, last)
    top = net.reduce("MAX", elements, [-1], keep_dims=True)
    found = net.select(net.elementwise("EQUAL", elements, top), places, last)
    first = net.reduce("MIN", found, [-1], keep_dims=False)
    if not is_float:
        return net.squeeze(top, -1), first
    picked = net.reshape(first, (*first.shape[:others], volume(counts)))
    return net.reshape(net.gather_elements(flat, picked, others), first.shape), first
