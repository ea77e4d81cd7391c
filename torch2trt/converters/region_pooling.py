"""Extremes and means of regions of an image whose corners are rounded to whole elements, as torchvision pools them.

How many elements a bin of a region has depends on the values of the regions. So elements are reduced beforehand, for
every place of the image: as many as the powers of two, in either direction. The extreme of a bin is that of the four
such blocks in its corners, which overlap; its sum is that of the blocks that make it up, one for each binary digit of
its height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.sizes import DimRange, Size, TensorSpec, largest, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

_MOST_REDUCED = 2**28  # elements: 1 GB of float32
_MOST_LOOKED_UP = 4096


# -- the arguments that such operators share ---------------------------------------------------------------------------


def only_the_regions(used: Collection[int]) -> str | None:
    """Why the second result, which torchvision keeps for the gradient, cannot be had."""
    return "only the pooled regions are computed, not what their gradient needs" if 1 in used else None


def first_items(net: Network, rois: Tensor) -> Tensor:
    """The number of the image that each region [K, 5] is of, INT32 [K, 1, 1, 1, 1]."""
    return net.reshape(net.cast(net.narrow(rois, 1, 0, 1), torch.int32), (rois.shape[0], 1, 1, 1, 1))


def bins_apart(net: Network, input: Tensor, pooled: Sequence[int]) -> Tensor:
    """[N, C * height * width, ...] as [N * height * width, C, ...], where each bin has channels of its own."""
    batch, channels, *sizes = input.shape
    apart = net.reshape(input, (batch, channels // volume(pooled), *pooled, *sizes))
    apart = net.permute(apart, (0, 2, 3, 1, 4, 5))
    return net.reshape(apart, (batch * volume(pooled), channels // volume(pooled), *sizes))


def items_of_bins(net: Network, rois: Tensor, pooled: Sequence[int]) -> Tensor:
    """The number of the item of :func:`bins_apart` that each bin of a region is of, INT32 [K, 1, 1, *pooled]."""
    bins = net.constant(torch.arange(int(volume(pooled)), dtype=torch.int32).reshape(1, 1, 1, *pooled))
    return net.elementwise("SUM", net.binary("PROD", first_items(net, rois), int(volume(pooled))), bins)


# -- blocks ------------------------------------------------------------------------------------------------------------


def _levels(size: Size, ranges: Mapping[str, DimRange]) -> int:
    """How many powers of two there are up to a size."""
    return largest(size, ranges).bit_length()


def _blocks(net: Network, images: Tensor, operation: str, outside: float) -> Tensor:
    """Images [N, H, W, C] reduced over 1, 2, 4, … rows and columns from every place on, [columns * rows * N, H, W, C].

    Args:
        outside: what counts nothing.
    """
    for axis in (1, 2):
        found = [images]
        for level in range(_levels(images.shape[axis], net.ranges) - 1):
            reach = [2**level * (other == axis) for other in range(4)]
            further = net.pad(found[-1], [-amount for amount in reach], reach, value=outside)
            found.append(net.elementwise(operation, found[-1], further))
        images = net.concat(found, 0)
    return images


def _rounded(net: Network, places: Tensor) -> Tensor:
    """The nearest whole number, the one farther from zero where two are."""
    whole = net.unary("FLOOR", net.unary("ABS", places))
    rest = net.elementwise("SUB", net.unary("ABS", places), whole)
    up = net.unary("NOT", net.binary("LESS", rest, 0.5))
    nearest = net.elementwise("SUM", whole, net.cast(up, torch.float32))
    return net.select(net.binary("LESS", places, 0.0), net.unary("NEG", nearest), nearest)


def _divided(net: Network, lengths: Tensor, count: int) -> Tensor:
    """Whole float32 lengths divided as float32 divides: rounded in any other way, a bin has an element more or less."""
    whole = net.cast(lengths, torch.int32)
    short = net.constant(torch.arange(_MOST_LOOKED_UP, dtype=torch.float32) / count)
    places = net.binary("MIN", whole, _MOST_LOOKED_UP - 1)
    # Of long ones the fraction rounds away what it was rounded by.
    quotients = net.binary("FLOOR_DIV", whole, count)
    rest = net.elementwise("SUB", whole, net.binary("PROD", quotients, count))
    fractions = net.gather(net.constant(torch.arange(count, dtype=torch.float32) / count), rest, 0)
    long = net.elementwise("SUM", net.cast(quotients, torch.float32), fractions)
    return net.select(net.binary("LESS", whole, _MOST_LOOKED_UP), net.gather(short, places, 0), long)


def _bins(
    net: Network, rois: Tensor, scale: float, sizes: Sequence[Size], pooled: Sequence[int], *, inclusive: bool
) -> list[tuple[Tensor, Tensor]]:
    """By direction where each bin of the regions begins and how long it is, INT32 [K, bins], within the sizes.

    Args:
        inclusive: whether the last corner lies inside of a region.
    """
    corners = _rounded(net, net.binary("PROD", net.cast(net.narrow(rois, 1, 1, 4), torch.float32), scale))
    found: list[tuple[Tensor, Tensor]] = []
    for axis, (size, wanted) in enumerate(zip(sizes, pooled, strict=True)):
        first, last = (net.narrow(corners, 1, place + 1 - axis, 1) for place in (0, 2))  # x comes first
        extent = net.binary("SUM", net.elementwise("SUB", last, first), float(inclusive))
        length = _divided(net, net.binary("MAX", extent, 1.0), wanted)
        numbers = torch.arange(wanted, dtype=torch.float32)
        ends = [
            net.unary(rounding, net.elementwise("PROD", length, net.constant(each)))
            for rounding, each in (("FLOOR", numbers), ("CEIL", numbers + 1))
        ]
        most = net.cast(net.tensor(size, torch.int64), torch.float32)
        inside = [net.binary("MAX", net.elementwise("SUM", first, end), 0.0) for end in ends]
        begin, end = (net.cast(net.elementwise("MIN", each, most), torch.int32) for each in inside)
        found.append((begin, net.elementwise("SUB", end, begin)))
    return found


Blocks = tuple[Tensor, Tensor, Tensor]
"""Of the blocks that bins are made of, in one direction: their powers of two, where they begin, and whether they count;
INT32, INT32 and BOOL, all of which broadcast to [K, blocks, bins]."""


def _at_both_ends(net: Network, begin: Tensor, length: Tensor, levels: int) -> Blocks:
    """The largest blocks at either end, which may overlap."""
    powers = net.constant((2 ** torch.arange(levels)).int())
    fits = net.unary("NOT", net.elementwise("LESS", length, net.reshape(powers, (1, levels, 1))))
    level = net.binary("SUB", net.reduce("SUM", net.cast(fits, torch.int32), [1], True), 1)
    level = net.binary("MAX", level, 0)
    end = net.elementwise("SUM", begin, length)
    last = net.elementwise("SUB", end, net.gather(powers, level, 0))
    return level, net.concat([begin, last], 1), net.binary("GREATER", length, 0)


def _end_to_end(net: Network, begin: Tensor, length: Tensor, levels: int) -> Blocks:
    """A block for each binary digit of the length that is 1, the largest first."""
    level = torch.arange(levels, dtype=torch.int32).reshape(1, levels, 1)
    powers, larger = (net.constant(torch.tensor(2, dtype=torch.int32) ** each) for each in (level, level + 1))
    before = net.elementwise("PROD", net.elementwise("FLOOR_DIV", length, larger), larger)
    is_one = net.unary("NOT", net.elementwise("LESS", net.elementwise("SUB", length, before), powers))
    return net.constant(level), net.elementwise("SUM", begin, before), is_one


def _reduced(
    net: Network,
    images: Tensor,
    items: Tensor,
    bins: Sequence[tuple[Tensor, Tensor]],
    operation: str,
    outside: float,
    made_of: Callable[[Network, Tensor, Tensor, int], Blocks],
) -> Tensor:
    """Every bin reduced, [K, C, *bins]; an empty one is 0.

    Args:
        images: [N, C, H, W].
        items: the number of the image, INT32, which broadcasts to [K, 1, 1, *bins].
        bins: by direction where they begin and how long they are, INT32 [K, bins].
        outside: what counts nothing.
        made_of: finds the blocks.
    """
    count, channels, *sizes = images.shape
    blocks = _blocks(net, net.permute(images, (0, 2, 3, 1)), operation, outside)
    total = volume(blocks.shape[:3])
    # One row more is what is read where there is nothing.
    table = net.pad(net.reshape(blocks, (total, channels)), [0, 0], [1, 0])
    index = net.binary("PROD", items, net.tensor(volume(sizes), torch.int32))
    inside = net.tensor(True)
    size_of_level = volume((count, *sizes))
    for axis, (size, (begin, length)) in enumerate(zip(sizes, bins, strict=True)):
        levels = _levels(size, net.ranges)
        level, place, counts = made_of(net, net.unsqueeze(begin, 1), net.unsqueeze(length, 1), levels)
        if axis == 0:
            place = net.binary("PROD", place, net.tensor(sizes[1], torch.int32))
        first = net.binary("PROD", level, net.tensor(size_of_level, torch.int32))
        size_of_level = size_of_level * levels
        index = net.elementwise("SUM", index, _along(net, net.elementwise("SUM", first, place), axis))
        inside = net.elementwise("AND", inside, _along(net, counts, axis))
    picked = net.gather(table, net.select(inside, index, net.tensor(total, torch.int32)), 0)
    return net.permute(net.reduce(operation, picked, [1, 2], False), (0, 3, 1, 2))


def _along(net: Network, tensor: Tensor, axis: int) -> Tensor:
    """[K, blocks, bins] of one direction as [K, blocks, 1, bins, 1] or [K, 1, blocks, 1, bins]."""
    count, blocks, bins = tensor.shape
    return net.reshape(tensor, (count, 1, blocks, 1, bins) if axis else (count, blocks, 1, bins, 1))


# -- operators ---------------------------------------------------------------------------------------------------------


def _unsupported(input: TensorSpec, used: Collection[int], ranges: Mapping[str, DimRange], **others: Any) -> str | None:
    reduced = largest(volume(input.shape), ranges)
    for size in input.shape[2:]:
        reduced *= _levels(size, ranges)
    if reduced > _MOST_REDUCED:
        return f"reduces blocks of all sizes, which are {reduced} numbers, more than {_MOST_REDUCED}"
    return only_the_regions(used) or only_floats(input=input, **others)


@converter("torchvision.roi_pool.default", unsupported=_unsupported)
def roi_pool(
    net: Network, input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, None]:
    """roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width)"""
    sizes, pooled = input.shape[2:], (pooled_height, pooled_width)
    bins = _bins(net, rois, spatial_scale, sizes, pooled, inclusive=True)
    # In half precision torchvision's lowest number is negative infinity.
    lowest = torch.tensor(torch.finfo(torch.float32).min).to(input.dtype)
    images = net.elementwise("MAX", input, net.constant(lowest))
    return _reduced(net, images, first_items(net, rois), bins, "MAX", lowest.item(), _at_both_ends), None


@converter("torchvision.ps_roi_pool.default", unsupported=_unsupported)
def ps_roi_pool(
    net: Network, input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, None]:
    """ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width)"""
    pooled = pooled_height, pooled_width
    # The last row and column are left out, as torchvision does.
    sizes = [size - 1 for size in input.shape[2:]]
    (rows, columns) = bins = _bins(net, rois, spatial_scale, sizes, pooled, inclusive=False)
    images = bins_apart(net, net.cast(input, torch.float32), pooled)
    sums = _reduced(net, images, items_of_bins(net, rois, pooled), bins, "SUM", 0, _end_to_end)
    area = net.elementwise("PROD", net.unsqueeze(rows[1], 2), net.unsqueeze(columns[1], 1))
    area = net.cast(net.binary("MAX", net.unsqueeze(area, 1), 1), torch.float32)
    return net.cast(net.elementwise("DIV", sums, area), input.dtype), None
