"""Entries that lie in bags one after the other, reduced bag by bag."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from torch2trt.converters.reasons import shape_of_negative
from torch2trt.converters.registry import converter
from torch2trt.converters.searching import found
from torch2trt.converters.segments import Compared, Sorted, group, grouping_unsupported, identity
from torch2trt.sizes import DimRange, Size, TensorSpec, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


class _Even:
    """Bags of equal length, one after the other.

    Args:
        kept: which of the entries count, [entries].
    """

    def __init__(self, net: Network, kept: Tensor, bags: int) -> None:
        self._net, self._bags = net, bags
        self._kept = net.reshape(kept, (1, bags, self._length(kept.shape[0]), 1))

    def _length(self, entries: Size) -> int:
        assert isinstance(entries, int)
        return entries // self._bags

    def reduce(self, operation: str, source: Tensor) -> Tensor:
        net = self._net
        _, entries, width = source.shape
        source = net.reshape(source, (1, self._bags, self._length(entries), width))
        return net.reduce(operation, net.select(self._kept, source, identity(net, operation, source.dtype)), [2], False)

    def counts(self) -> Tensor:
        return self._net.reduce("SUM", self._net.cast(self._kept, torch.int32), [2], False)


def _length_of_all(offsets: Tensor, bags: Size, entries: Size) -> int | None:
    """The length of all bags, where it is known and the same."""
    if offsets.value is None or not isinstance(bags, int) or not isinstance(entries, int) or entries % bags:
        return None
    length = entries // bags
    return length if torch.equal(offsets.value[:bags].cpu().long(), torch.arange(bags) * length) else None


def _bags(
    net: Network, kept: Tensor, offsets: Tensor, bags: Size, width: Size, *, all_kept: bool
) -> _Even | Compared | Sorted:
    (entries,) = kept.shape
    if _length_of_all(offsets, bags, entries):
        assert isinstance(bags, int)
        return _Even(net, kept, bags)
    numbers = net.iota(0, 1, entries, torch.int32)
    begun = found(net, net.cast(net.narrow(offsets, 0, 0, bags), torch.int32), numbers, right=True)
    bag = net.elementwise("SUB", begun, net.tensor(1, torch.int32))
    if not all_kept:
        bag = net.select(kept, bag, net.tensor(-1, torch.int32))
    return group(net, net.unsqueeze(bag, 0), bags, width, in_order=all_kept)


# -- embeddings --------------------------------------------------------------------------------------------------------


def _unsupported(
    weight: TensorSpec,
    indices: TensorSpec,
    offsets: TensorSpec,
    used: Collection[int],
    ranges: Mapping[str, DimRange],
    **_: Any,
) -> str | None:
    if set(used) - {0}:
        return "only the reduced embeddings are computed, not what their gradient needs"
    return grouping_unsupported(indices.shape[0], offsets.shape[0], weight.shape[1], ranges)


@converter(aten._embedding_bag_forward_only.default, aten._embedding_bag.default, unsupported=_unsupported)
def embedding_bag(
    net: Network,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    mode: int,
    per_sample_weights: Tensor | None,
    padding_idx: int,
    **_: Any,
) -> tuple[Tensor | None, ...]:
    """_embedding_bag_forward_only(Tensor weight, Tensor indices, Tensor offsets, bool scale_grad_by_freq=False, ...)"""
    result = net.results[0]
    assert result is not None
    bags, width = result.shape
    if 0 in (*indices.shape, bags):
        return net.expand(net.tensor(0, weight.dtype), result.shape), None, None, None
    entries = net.cast(net.gather(weight, indices, 0), torch.float32)
    if per_sample_weights is not None:
        entries = net.elementwise("PROD", entries, net.unsqueeze(net.cast(per_sample_weights, torch.float32), 1))
    padding = net.tensor(padding_idx, indices.dtype)
    kept = net.unary("NOT", net.elementwise("EQUAL", indices, padding))
    of_bags = _bags(net, kept, offsets, bags, width, all_kept=padding_idx < 0)
    reduced = of_bags.reduce("MAX" if mode == 2 else "SUM", net.unsqueeze(entries, 0))
    if mode == 1:
        counts = net.elementwise("MAX", of_bags.counts(), net.tensor(1, torch.int32))
        reduced = net.elementwise("DIV", reduced, net.cast(counts, torch.float32))
    if mode == 2:
        filled = net.elementwise("GREATER", of_bags.counts(), net.tensor(0, torch.int32))
        reduced = net.select(filled, reduced, net.tensor(0.0, torch.float32))
    return net.cast(net.reshape(reduced, result.shape), weight.dtype), None, None, None


# -- segments ----------------------------------------------------------------------------------------------------------

_REDUCTIONS = {"sum": "SUM", "mean": "SUM", "prod": "PROD", "max": "MAX", "min": "MIN"}


def _segments_unsupported(
    data: TensorSpec,
    lengths: TensorSpec | None,
    offsets: TensorSpec | None,
    axis: int,
    results: Sequence[TensorSpec],
    ranges: Mapping[str, DimRange],
    **_: Any,
) -> str | None:
    axis %= data.rank
    segments = offsets.shape[axis] - 1 if offsets is not None else lengths.shape[axis] if lengths is not None else 0
    shape = (*data.shape[:axis], segments, *data.shape[axis + 1 :])
    if reason := shape_of_negative(results[0].shape, shape, "axis"):
        return reason
    others = volume((*data.shape[:axis], *data.shape[axis + 1 :]))
    return grouping_unsupported(data.shape[axis], segments, others, ranges)


@converter(aten.segment_reduce.default, unsupported=_segments_unsupported)
def segment_reduce(
    net: Network,
    data: Tensor,
    reduce: str,
    lengths: Tensor | None,
    offsets: Tensor | None,
    axis: int,
    initial: float | None,
    **_: Any,
) -> Tensor:
    """segment_reduce(Tensor data, str reduce, *, Tensor? lengths=None, Tensor? indices=None, ...)"""
    axis %= data.rank
    shape, operation = net.result.shape, _REDUCTIONS[reduce]
    segments, rows = shape[axis], volume(shape[:axis])
    neutral = identity(net, operation, torch.float32)
    first = neutral if initial is None else net.tensor(float(initial), torch.float32)
    # Of nothing there is no mean.
    of_none = net.tensor(math.nan, torch.float32) if reduce == "mean" and initial is None else first
    if 0 in data.shape:
        return net.expand(net.cast(of_none, data.dtype), shape)
    entries = group(
        net,
        _segment_of_each(net, data.shape, axis, lengths, offsets),
        segments,
        volume(shape[axis + 1 :]),
        in_order=True,
    )
    source = net.cast(net.reshape(data, (rows, data.shape[axis], volume(shape[axis + 1 :]))), torch.float32)
    reduced = net.elementwise(operation, entries.reduce(operation, source), first)
    counts = entries.counts()
    if reduce == "mean":
        reduced = net.elementwise("DIV", reduced, net.cast(counts, torch.float32))
    reduced = net.select(net.binary("GREATER", counts, 0), reduced, of_none)
    return net.cast(net.reshape(reduced, shape), data.dtype)


def _segment_of_each(
    net: Network, shape: Sequence[Size], axis: int, lengths: Tensor | None, offsets: Tensor | None
) -> Tensor:
    """The number of each entry's segment, INT32 [rows, entries], -1 for those before the first and behind the last."""
    rows, entries = volume(shape[:axis]), shape[axis]
    if offsets is None:
        assert lengths is not None
        ends = net.cumulative_sum(net.cast(lengths, torch.int32), -1)
        borders = net.concat([net.expand(net.tensor(0, torch.int32), (*shape[:axis], 1)), ends], -1)
    else:
        borders = net.cast(offsets, torch.int32)
    segments = borders.shape[-1] - 1
    borders = net.reshape(borders, (rows, segments + 1))
    places = net.expand(net.iota(0, 1, entries, torch.int32), (rows, entries))
    number = net.binary("SUB", found(net, borders, places, right=True), 1)
    return net.select(net.binary("LESS", number, segments), number, net.tensor(-1, torch.int32))
