"""Embeddings reduced bag by bag."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.converters.searching import found
from torch2trt.converters.segments import Compared, Sorted, group, grouping_unsupported, identity
from torch2trt.sizes import DimRange, Size, TensorSpec
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
