"""Entries reduced by the place that each goes to, which TensorRT's scatter layer cannot.

Few entries and places are compared, each with each. More are sorted by their place; then running sums that start anew
where the place changes take a number of layers that grows with the logarithm of the number of entries, and the last
one of each place is its result. Both are exact: an infinity or a NaN touches its own place only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from torch2trt.converters.ranking import MOST_AT_ONCE
from torch2trt.sizes import DimRange, Size, largest, simplify, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

_MOST_COMPARED = 2**22  # elements: 16 MB of float32
_MOST_PARTIAL = 2**28

_NOWHERE, _BEYOND = -1, -2  # the place of what fills the last block, and of what is outside of all


def identity(net: Network, operation: str, dtype: torch.dtype) -> Tensor:
    """The number that SUM, PROD, MAX or MIN (of float32 or int64) leaves as it is."""
    lowest, highest = (-math.inf, math.inf) if dtype.is_floating_point else (-(2**63), 2**63 - 1)
    return net.tensor({"SUM": 0, "PROD": 1, "MAX": lowest, "MIN": highest}[operation], dtype)


def group(
    net: Network, index: Tensor, places: Size, width: Size, *, in_order: bool = False, origin: tuple[Any, ...] = ()
) -> Compared | Sorted:
    """The entries of each place.

    Args:
        index: [rows, entries] of integers from 0, or -1 for what goes nowhere; every row has its own places.
        places: how many there are in a row.
        width: of the entries that will be reduced, [rows, entries, width].
        in_order: the entries already lie in the order of their places.
        origin: the tensor that the index was made of, and how; what has the same origin is sorted once.
    """
    compared = volume((*index.shape, places, width))
    if largest(compared, net.ranges) <= _MOST_COMPARED:
        return Compared(net, index, places)
    if not origin:
        return Sorted(net, index, places, in_order=in_order)
    key = (Sorted, places, *origin)
    if key not in net.shared:
        net.shared[key] = Sorted(net, index, places, in_order=in_order)
    found = net.shared[key]
    assert isinstance(found, Sorted)
    return found


def grouping_unsupported(entries: Size, places: Size, others: Size, ranges: Mapping[str, DimRange]) -> str | None:
    """Why entries cannot be reduced: what the blocks that they are sorted in yield takes too much memory.

    Args:
        others: how many independent numbers each entry has, and rows there are.
    """
    blocks, _ = _blocks(largest(entries, ranges))
    partial = blocks * largest(places, ranges) * largest(others, ranges)
    if blocks == 1 or partial <= _MOST_PARTIAL:
        return None
    return (
        f"TensorRT sorts {MOST_AT_ONCE} elements at most; {entries} would go to {places} places in {blocks} parts "
        f"that take {partial} numbers, more than {_MOST_PARTIAL}"
    )


def _blocks(entries: int) -> tuple[int, int]:
    """Into how many blocks, of which length, entries are divided to be sorted."""
    blocks = max(1, -(-entries // MOST_AT_ONCE))
    return blocks, max(1, -(-entries // blocks))


class Compared:
    """Every entry compared with every place."""

    def __init__(self, net: Network, index: Tensor, places: Size) -> None:
        self._net = net
        numbers = net.unsqueeze(net.iota(0, 1, places, index.dtype), 1)
        self._hits = net.elementwise("EQUAL", net.unsqueeze(index, 1), numbers)  # [rows, places, entries]

    def reduce(self, operation: str, source: Tensor) -> Tensor:
        """[rows, places, width] of [rows, entries, width] in float32 or int64; an empty place has the identity."""
        net = self._net
        nothing = identity(net, operation, source.dtype)
        own = net.select(net.unsqueeze(self._hits, 3), net.unsqueeze(source, 1), nothing)
        return net.reduce(operation, own, [2], False)

    def counts(self) -> Tensor:
        """How many entries each place has, [rows, places, 1] of int32."""
        return self._net.reduce("SUM", self._net.cast(self._hits, torch.int32), [2], True)


class Sorted:
    """Entries sorted by place in blocks of equal length; ``rows`` times blocks of them are called lines."""

    def __init__(self, net: Network, index: Tensor, places: Size, *, in_order: bool) -> None:
        self._net, self._places = net, places
        self._rows, entries = index.shape
        _, self._length = _blocks(largest(entries, net.ranges))
        self._blocks = simplify(sympy.sympify(FloorDiv(entries + self._length - 1, self._length)))
        self._lines = self._rows * self._blocks
        self._order: Tensor | None = None
        ids = net.reshape(self._filled(net.cast(index, torch.int32), _NOWHERE), (self._lines, self._length))
        if not in_order:
            ids, order = net.top_k(ids, self._length, 1, largest=False)
            starts = net.iota(0, self._length, self._lines, torch.int32)
            self._order = net.flatten(net.elementwise("SUM", order, net.unsqueeze(starts, 1)))
        self._ids = ids
        self._followed: dict[int, Tensor] = {}

    def _filled(self, tensor: Tensor, value: int) -> Tensor:
        """[rows, entries, ...] with as many entries as the blocks hold."""
        missing = simplify(sympy.sympify(self._blocks * self._length - tensor.shape[1]))
        if missing == 0:
            return tensor
        outer = [0] * (tensor.rank - 2)
        return self._net.pad(tensor, [0] * tensor.rank, [0, missing, *outer], value=value)

    def _moved(self, tensor: Tensor, reach: int, value: int = 0) -> Tensor:
        """[lines, length, ...] with every entry so many further on, and a value before them."""
        outer = [0] * (tensor.rank - 2)
        return self._net.pad(tensor, [0, reach, *outer], [0, -reach, *outer], value=value)

    def _follows(self, reach: int) -> Tensor:
        """Whether an entry so many before has the same place, [lines, length]."""
        if reach not in self._followed:
            other = self._moved(self._ids, reach, _BEYOND)
            self._followed[reach] = self._net.elementwise("EQUAL", self._ids, other)
        return self._followed[reach]

    def _placed(self, values: Tensor, start: Tensor, reach: int) -> Tensor:
        """[lines * places, ...] with those of [lines, length, ...] that begin (reach 1) or end (-1) a place's entries.

        Args:
            start: what the other places have, a scalar.
        """
        net, ids = self._net, self._ids
        border = net.unary("NOT", self._follows(reach))
        border = net.elementwise("AND", border, net.elementwise("GREATER", ids, net.tensor(_NOWHERE, ids.dtype)))
        first = net.unsqueeze(net.iota(0, self._places, self._lines, torch.int32), 1)
        # All others are written to one more place, in whatever order.
        spare = self._lines * self._places
        targets = net.select(border, net.elementwise("SUM", ids, first), net.tensor(spare, torch.int32))
        flat = net.reshape(values, (self._lines * self._length, *values.shape[2:]))
        empty = net.expand(start, (spare + 1, *values.shape[2:]))
        return net.narrow(net.scatter_nd(empty, net.reshape(targets, (flat.shape[0], 1)), flat), 0, 0, spare)

    def reduce(self, operation: str, source: Tensor) -> Tensor:
        """[rows, places, width] of [rows, entries, width] in float32 or int64; an empty place has the identity."""
        net, width = self._net, source.shape[2]
        nothing = identity(net, operation, source.dtype)
        values = net.reshape(self._filled(source, 0), (self._lines * self._length, width))
        if self._order is not None:
            values = net.gather(values, self._order, 0)
        values = net.reshape(values, (self._lines, self._length, width))
        reach = 1
        while reach < self._length:
            # Every entry holds as many of its place as it reaches back: adding those before them doubles that.
            earlier = net.select(net.unsqueeze(self._follows(reach), 2), self._moved(values, reach), nothing)
            values, reach = net.elementwise(operation, values, earlier), 2 * reach
        parts = self._placed(values, nothing, -1)
        parts = net.reshape(parts, (self._rows, self._blocks, self._places, width))
        return net.reduce(operation, parts, [1], False)

    def counts(self) -> Tensor:
        """How many entries each place has, [rows, places, 1] of int32."""
        net = self._net
        zero = net.tensor(0, torch.int32)
        shape = (self._lines, self._length)
        ends, starts = (
            self._placed(net.expand(net.iota(first, 1, self._length, torch.int32), shape), zero, reach)
            for first, reach in ((1, -1), (0, 1))
        )
        counts = net.reshape(net.elementwise("SUB", ends, starts), (self._rows, self._blocks, self._places, 1))
        return net.reduce("SUM", counts, [1], False)
