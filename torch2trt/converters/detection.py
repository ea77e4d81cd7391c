"""Operators of torchvision: samples of regions, averaged, and convolutions whose windows are deformed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from torch2trt.converters.reasons import only_floats
from torch2trt.converters.region_pooling import bins_apart, first_items, items_of_bins, only_the_regions
from torch2trt.converters.registry import converter
from torch2trt.converters.sampling import LINEAR, Taps, clamp, items, joined, rows, sampled, taps, vector
from torch2trt.sizes import Size, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

# -- regions -----------------------------------------------------------------------------------------------------------


def _sampling_unsupported(sampling_ratio: int, **arguments: Any) -> str | None:
    if sampling_ratio <= 0:
        return "how many samples are taken depends on the values of the regions: pass a sampling_ratio, such as 2"
    return only_floats(**arguments)


def _ps_roi_align_unsupported(used: Collection[int], **arguments: Any) -> str | None:
    return only_the_regions(used) or _sampling_unsupported(**arguments)


@converter("torchvision.roi_align.default", unsupported=_sampling_unsupported)
def roi_align(
    net: Network,
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, ...)"""
    sizes, pooled = input.shape[2:], (pooled_height, pooled_width)
    places = _samples(net, rois, spatial_scale, sizes, pooled, sampling_ratio, aligned, at_least=0 if aligned else 1)
    starts = net.binary("PROD", first_items(net, rois), net.tensor(volume(sizes), torch.int32))
    return _means(net, rows(net, input), starts, places, sampling_ratio)


@converter("torchvision.ps_roi_align.default", unsupported=_ps_roi_align_unsupported)
def ps_roi_align(
    net: Network,
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> tuple[Tensor, None]:
    """ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, ...)"""
    sizes, pooled = input.shape[2:], (pooled_height, pooled_width)
    places = _samples(net, rois, spatial_scale, sizes, pooled, sampling_ratio, aligned=True, at_least=0)
    starts = net.binary("PROD", items_of_bins(net, rois, pooled), net.tensor(volume(sizes), torch.int32))
    return _means(net, rows(net, bins_apart(net, input, pooled)), starts, places, sampling_ratio), None


def _samples(
    net: Network,
    rois: Tensor,
    scale: float,
    sizes: Sequence[Size],
    pooled: Sequence[int],
    ratio: int,
    aligned: bool,
    at_least: float,
) -> Taps:
    """The taps of the samples of every bin of the regions, [K, 2 * ratio, 2 * ratio, *pooled].

    Args:
        sizes: the height and width that the regions lie in.
        ratio: how many samples a bin has in each direction.
        aligned: whether a place is the centre of an element, and not its upper left corner.
        at_least: the height and width of a region.
    """
    corners = net.binary("PROD", net.cast(net.narrow(rois, 1, 1, 4), torch.float32), scale)
    if aligned:
        corners = net.binary("SUB", corners, 0.5)
    first = net.narrow(corners, 1, 0, 2)
    extent = net.elementwise("SUB", net.narrow(corners, 1, 2, 2), first)
    if at_least:
        extent = net.binary("MAX", extent, at_least)
    lanes: list[Taps] = []
    for axis, (size, wanted) in enumerate(zip(sizes, pooled, strict=True)):
        samples = wanted * ratio
        # A sample of every bin, then the next: so those of a bin lie along one axis with their taps.
        fractions = net.constant(((torch.arange(samples) + 0.5) / samples).reshape(wanted, -1).T.flatten())
        start, length = (net.narrow(corner, 1, 1 - axis, 1) for corner in (first, extent))  # x comes first
        places = net.elementwise("SUM", start, net.elementwise("PROD", length, fractions))
        found = taps(net, net.unsqueeze(_without_far(net, places, size), -1), [size], LINEAR)
        shape = [rois.shape[0], 1, 1, 1, 1]
        shape[1 + axis], shape[3 + axis] = 2 * ratio, wanted
        lanes.append(found.along(net, 0, shape))
    return joined(net, lanes, sizes)


def _means(net: Network, table: Tensor, starts: Tensor, places: Taps, ratio: int) -> Tensor:
    """The means of the samples of every bin, [K, C, *pooled], of a table [rows, C]."""
    sums = sampled(net, table, starts, places, (1, 2))
    return net.permute(net.binary("PROD", sums, 1 / ratio**2), (0, 3, 1, 2))


def _without_far(net: Network, places: Tensor, size: Size) -> Tensor:
    """Places within one element around the tensor moved inside, those farther away to where no tap is inside."""
    near = net.elementwise("MIN", net.binary("MAX", places, -1.0), vector(net, [size]))
    inner = clamp(net, places, vector(net, [size - 1]))
    return net.select(net.elementwise("EQUAL", near, places), inner, net.tensor(-2.0, torch.float32))


# -- deformed windows --------------------------------------------------------------------------------------------------


@converter("torchvision.deform_conv2d.default", unsupported=only_floats)
def deform_conv2d(
    net: Network,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Tensor:
    """deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, ...)"""
    batch, channels, *sizes = input.shape
    outputs, _, *window = weight.shape
    wanted = offset.shape[2:]
    count, points = window[0] * window[1], volume((*window, *wanted))
    deformed = net.reshape(net.cast(offset, torch.float32), (batch, offset_groups, *window, 2, *wanted))
    steps = ((stride_h, pad_h, dilation_h), (stride_w, pad_w, dilation_w))
    lanes: list[Tensor] = []
    for axis, (stride, pad, dilation) in enumerate(steps):
        starts = net.iota(-pad, stride, wanted[axis], torch.float32)
        inner = net.iota(0, dilation, window[axis], torch.float32)
        moved = net.squeeze(net.narrow(deformed, 4, axis, 1), 4)  # [N, groups, *window, *wanted]
        for values, place in ((starts, axis + 4), (inner, axis + 2)):
            shape = [1] * 6
            shape[place] = values.shape[0]
            moved = net.elementwise("SUM", moved, net.reshape(values, shape))
        lanes.append(net.reshape(moved, (batch, offset_groups, points, 1)))
    found = taps(net, net.concat(lanes, -1), sizes, LINEAR)
    vertical = found.along(net, 0, (batch, offset_groups, 2, 1, points))
    if use_mask:
        factors = net.reshape(net.cast(mask, torch.float32), (batch, offset_groups, 1, 1, points))
        vertical = Taps(vertical.indices, net.elementwise("PROD", vertical.weights, factors))
    whole = joined(net, [vertical, found.along(net, 1, (batch, offset_groups, 1, 2, points))], sizes)
    # Each group of offsets is an item of its own.
    inner_channels = channels // offset_groups
    table = rows(net, net.reshape(input, (batch * offset_groups, inner_channels, *sizes)))
    starts = net.reshape(items(net, batch * offset_groups, volume(sizes), 1), (batch, offset_groups, 1, 1, 1))
    columns = net.reshape(
        sampled(net, table, starts, whole, (2, 3)), (batch, offset_groups, count, volume(wanted), inner_channels)
    )
    columns = net.reshape(
        net.permute(columns, (0, 1, 4, 2, 3)), (batch, groups, channels // groups * count, volume(wanted))
    )
    factors = net.reshape(weight, (groups, outputs // groups, channels // groups * count))
    result = net.reshape(net.matmul(factors, columns), (batch, outputs, *wanted))
    return net.elementwise("SUM", result, net.reshape(bias, (1, outputs, 1, 1)))
