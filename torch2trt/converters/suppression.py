"""Greedy suppression of boxes: of those that overlap, the one with the highest score is kept.

TensorRT's own NMS layer leaves boxes out that come after a number of others, and takes equal scores in any order. Here
every pair of boxes is compared at once, as many as there may be; the greedy choice is then the only one in which each
box is kept that no kept box before it overlaps, and repeating that rule from any start comes to it: a first round is
right for the first box, and every round for at least one more. Few rounds do, since only chains of overlapping boxes
take long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.converters.selection import no_selection, selected_places
from torch2trt.converters.sorting import argsort, filled
from torch2trt.sizes import DimRange, Size, TensorSpec, largest
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.loops import Loop
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

_MOST_BOXES = 10_000  # from there on the comparisons of all with all take too much memory


def _nms_unsupported(
    dets: TensorSpec, scores: TensorSpec, iou_threshold: float, flavour: Flavour, ranges: Mapping[str, DimRange]
) -> str | None:
    if reason := no_selection(scores.shape, flavour):
        return reason
    if iou_threshold < 0:
        return f"a threshold of {iou_threshold}, by which boxes suppress each other that do not touch"
    if (most := largest(dets.shape[0], ranges)) > _MOST_BOXES:
        return f"compares each of up to {most} boxes with all others, {_MOST_BOXES} at most"
    return only_floats(dets=dets, scores=scores)


def _nms_at_most(dets: TensorSpec, **_: object) -> Size:
    return dets.shape[0]


@converter("torchvision.nms.default", unsupported=_nms_unsupported, at_most=_nms_at_most)
def nms(net: Network, dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"""
    number = dets.shape[0]
    # All that has this many rows is of a static size; those that are no boxes come last.
    count = largest(number, net.ranges)
    order = argsort(net, filled(net, scores, count, -math.inf), 0, descending=True, stable=True)
    boxes = net.cast(net.gather(filled(net, dets, count, 0), order, 0), torch.float32)
    kept = _greedy(net, _overlaps(net, boxes, iou_threshold), count)
    if number != count:
        inside = net.elementwise("LESS", net.iota(0, 1, count, torch.int64), net.dims.tensor(number))
        kept = net.elementwise("AND", kept, inside)
    return net.gather(order, selected_places(net, kept), 0)


def _overlaps(net: Network, boxes: Tensor, threshold: float) -> Tensor:
    """Of boxes [n, 4] as (x1, y1, x2, y2): whether each (row) overlaps an earlier one (column), BOOL [n, n]."""
    left, top, right, bottom = (net.narrow(boxes, 1, place, 1) for place in range(4))
    shared = net.elementwise("PROD", _shared(net, left, right), _shared(net, top, bottom))
    area = net.elementwise("PROD", net.elementwise("SUB", right, left), net.elementwise("SUB", bottom, top))
    either = net.elementwise("SUM", area, net.transpose(area, 0, 1))
    ratio = net.elementwise("DIV", shared, net.elementwise("SUB", either, shared))
    # Two boxes without area share nothing of nothing, which is no number.
    found = net.elementwise("AND", net.binary("GREATER", ratio, threshold), net.binary("GREATER", shared, 0.0))
    count = boxes.shape[0]
    return net.elementwise("AND", found, net.triangle(count, count, -1, upper=False))


def _shared(net: Network, first: Tensor, last: Tensor) -> Tensor:
    """How much of one axis every two spans [n, 1] have in common, [n, n]."""
    begin = net.elementwise("MAX", first, net.transpose(first, 0, 1))
    end = net.elementwise("MIN", last, net.transpose(last, 0, 1))
    return net.binary("MAX", net.elementwise("SUB", end, begin), 0.0)


def _greedy(net: Network, overlaps: Tensor, count: int) -> Tensor:
    """Which boxes are kept, BOOL [n], where no box that is kept overlaps a later one that is."""
    factors = net.cast(overlaps, torch.float16)
    loop = Loop(net)
    kept = loop.carry(net.constant(torch.ones(count)))
    changing = loop.carry(net.tensor(True))
    loop.go_on(changing)
    # The sum of ones may round, but is 0 only where there is none.
    suppressors = net.matmul(factors, net.cast(kept, torch.float16))
    following = net.cast(net.binary("EQUAL", suppressors, 0.0), torch.float32)
    differs = net.unary("NOT", net.elementwise("EQUAL", following, kept))
    loop.follow(changing, net.reduce("MAX", differs, [0], False))
    return net.binary("GREATER", loop.follow(kept, following), 0.5)
