"""Places in sorted sequences, and how many numbers fall between such places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch2trt.converters.reasons import wrong_dtype
from torch2trt.converters.registry import converter
from torch2trt.converters.segments import group, grouping_unsupported
from torch2trt.sizes import DimRange, Size, TensorSpec, largest, volume
from torch2trt.trt.arithmetic import Operand
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_MOST_COMPARED = 2**22  # elements: 16 MB of int32


def found(net: Network, sequence: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """How many elements of a sorted sequence lie before each value, as int32.

    Args:
        sequence: [count], or [*batch, count]; sorted along the last dimension.
        values: of any shape, or [*batch, n]; of the same dtype.
        right: whether elements equal to the value lie before it.
    """
    count = sequence.shape[-1]
    if count == 0:
        return net.expand(net.tensor(0, torch.int32), values.shape)
    if largest(volume((*values.shape, count)), net.ranges) <= _MOST_COMPARED:
        lines = sequence if sequence.rank == 1 else net.unsqueeze(sequence, -2)
        before = _is_before(net, lines, net.unsqueeze(values, -1), right=right)
        return net.reduce("SUM", net.cast(before, torch.int32), [-1], False)
    # In halves: 2 ** n - 1 elements are known to lie before, or not, after n steps.
    size = net.tensor(count, torch.int32)
    one = net.tensor(1, torch.int32)
    place = net.expand(net.tensor(0, torch.int32), values.shape)
    for bit in reversed(range(largest(count, net.ranges).bit_length())):
        further = net.elementwise("SUM", place, net.tensor(1 << bit, torch.int32))
        last = net.elementwise("SUB", net.elementwise("MIN", further, size), one)
        element = net.gather(sequence, last, 0) if sequence.rank == 1 else net.gather_elements(sequence, last, -1)
        inside = net.unary("NOT", net.elementwise("GREATER", further, size))
        moves = net.elementwise("AND", inside, _is_before(net, element, values, right=right))
        place = net.select(moves, further, place)
    return place


def _is_before(net: Network, element: Tensor, value: Tensor, *, right: bool) -> Tensor:
    after = net.elementwise("GREATER", element, value)
    if not right:
        after = net.elementwise("OR", after, net.elementwise("EQUAL", element, value))
    return net.unary("NOT", after)  # NaN lies behind everything


@converter(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
def searchsorted(
    net: Network,
    sorted_sequence: Tensor,
    input: Operand,
    right: bool,
    side: str | None,
    sorter: Tensor | None,
    **_: Any,
) -> Tensor:
    """searchsorted.Tensor(Tensor sorted_sequence, Tensor self, *, bool out_int32=False, bool right=False, ...)"""
    if sorter is not None:
        sorted_sequence = net.gather_elements(sorted_sequence, sorter, -1)
    sequence, values = net.promote(sorted_sequence, input)
    return net.cast(found(net, sequence, values, right=right or side == "right"), net.result.dtype)


@converter(aten.bucketize.Tensor, aten.bucketize.Scalar)
def bucketize(net: Network, input: Operand, boundaries: Tensor, right: bool, **_: Any) -> Tensor:
    """bucketize.Tensor(Tensor self, Tensor boundaries, *, bool out_int32=False, bool right=False) -> Tensor"""
    return searchsorted(net, boundaries, input, right, None, None)


def _repeat_unsupported(output_size: Size | None, **_: Any) -> str | None:
    return "the number of repetitions depends on the values: pass output_size" if output_size is None else None


@converter(aten.repeat_interleave.Tensor, unsupported=_repeat_unsupported)
def repeat_interleave(net: Network, repeats: Tensor, output_size: Size | None) -> Tensor:
    """repeat_interleave.Tensor(Tensor repeats, *, SymInt? output_size=None) -> Tensor"""
    assert output_size is not None
    ends = net.cumulative_sum(net.cast(repeats, torch.int32), 0)
    places = found(net, ends, net.iota(0, 1, output_size, torch.int32), right=True)
    return net.cast(places, net.result.dtype)


# -- counts ------------------------------------------------------------------------------------------------------------


def _histc_unsupported(input: TensorSpec, bins: int, ranges: Mapping[str, DimRange], **_: Any) -> str | None:
    return grouping_unsupported(volume(input.shape), bins, 1, ranges)


@converter(aten.histc.default, unsupported=_histc_unsupported)
def histc(net: Network, input: Tensor, bins: int, min: float, max: float) -> Tensor:
    """histc(Tensor self, int bins=100, Scalar min=0, Scalar max=0) -> Tensor"""
    if 0 in input.shape:
        return net.expand(net.tensor(0, input.dtype), (bins,))
    values = net.cast(net.flatten(input), torch.float32)
    low, high = (net.tensor(end, values.dtype) for end in (min, max))
    if min == max:
        # The range of the values, widened where they are all the same.
        low, high = (net.reduce(end, values, [], False) for end in ("MIN", "MAX"))
        wider = net.cast(net.elementwise("EQUAL", low, high), values.dtype)
        low, high = net.elementwise("SUB", low, wider), net.elementwise("SUM", high, wider)
    outside = net.elementwise("OR", net.elementwise("LESS", values, low), net.elementwise("GREATER", values, high))
    outside = net.elementwise("OR", outside, net.unary("ISNAN", values))
    distance = net.elementwise("SUB", net.select(outside, low, values), low)
    scaled = net.elementwise("PROD", distance, net.tensor(float(bins), values.dtype))
    place = net.cast(net.elementwise("DIV", scaled, net.elementwise("SUB", high, low)), torch.int32)
    place = net.elementwise("MIN", place, net.tensor(bins - 1, place.dtype))
    place = net.select(outside, net.tensor(-1, place.dtype), place)
    counts = group(net, net.unsqueeze(place, 0), bins, 1).counts()
    return net.cast(net.reshape(counts, (bins,)), input.dtype)


def _bincount_unsupported(
    input: TensorSpec,
    weights: TensorSpec | None,
    ranges: Mapping[str, DimRange],
    results: Sequence[TensorSpec],
    **_: Any,
) -> str | None:
    # Of nothing, eager counts in integers whatever the weights.
    if weights is None or input.shape[0] == 0:
        dtype = torch.int64
    else:
        dtype = torch.float32 if weights.dtype == torch.float32 else torch.float64
    if reason := wrong_dtype(results, dtype):
        return reason
    (counts,) = results[0].shape
    if not isinstance(counts, int):
        return "how many counts there are depends on the values: torch._check(counts.shape[0] == n) says that it is n"
    return grouping_unsupported(input.shape[0], counts, 1, ranges)


@converter(aten.bincount.default, unsupported=_bincount_unsupported)
def bincount(net: Network, input: Tensor, weights: Tensor | None, **_: Any) -> Tensor:
    """bincount(Tensor self, Tensor? weights=None, SymInt minlength=0) -> Tensor"""
    ((bins,), dtype) = net.result.shape, net.result.dtype
    if input.shape[0] == 0:
        return net.expand(net.tensor(0, dtype), (bins,))
    values = net.cast(input, torch.int64)
    # Where torch would have more counts than the module says, and raise an error, the others are left out.
    places = net.select(net.binary("LESS", values, bins), values, net.tensor(-1))
    entries = group(net, net.unsqueeze(places, 0), bins, 1)
    if weights is None:
        return net.cast(net.reshape(entries.counts(), (bins,)), dtype)
    source = net.reshape(net.cast(weights, torch.float32), (1, input.shape[0], 1))
    return net.cast(net.reshape(entries.reduce("SUM", source), (bins,)), dtype)
