"""Sorting, and what is read off sorted elements: medians, the k-th smallest, the most frequent.

TensorRT's TopK sorts 3840 elements, equal ones in any order. More are sorted in chunks and merged: an element's place
is its own within the chunk and, for each other chunk, the number of elements there that come before it, found by a
binary search of all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from torch2trt.converters.ranking import MOST_AT_ONCE, first_extreme, places_along
from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec, largest, volume
from torch2trt.trt.core import BYTES
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

MOST_SORTED = 1 << 18
"""From there on the searches of all elements in all chunks take too much memory."""


def _sort_unsupported(input: TensorSpec, dim: int = -1, **_: object) -> str | None:
    size = input.shape[dim] if input.rank else 1
    if not isinstance(size, int):
        return "sorts a dynamic dimension"
    return f"sorts {size} elements, which takes too much memory: {MOST_SORTED} at most" if size > MOST_SORTED else None


def _sorted(net: Network, input: Tensor, dim: int, *, descending: bool, stable: bool) -> tuple[Tensor, Tensor]:
    """The elements along a dimension in order, NaN as the largest, and their INT32 places."""
    size = input.shape[dim]
    assert isinstance(size, int)
    if input.dtype == torch.bool or input.dtype in BYTES:
        values, places = _sorted(net, net.cast(input, torch.int32), dim, descending=descending, stable=stable)
        return net.cast(values, input.dtype), places
    if size <= MOST_AT_ONCE and not stable:
        return net.top_k(input, size, dim, largest=descending)
    last = input.rank - 1
    rows = net.transpose(input, dim, last)
    sort = _sorted_rows if size <= MOST_AT_ONCE else _merged_rows
    return tuple(net.transpose(each, dim, last) for each in sort(net, rows, descending))  # type: ignore[return-value]


def _same(net: Network, first: Tensor, second: Tensor) -> Tensor:
    """Whether neither of two elements comes before the other: they are equal, or both NaN."""
    equal = net.elementwise("EQUAL", first, second)
    if not first.dtype.is_floating_point:
        return equal
    neither = net.elementwise("AND", net.unary("ISNAN", first), net.unary("ISNAN", second))
    return net.elementwise("OR", equal, neither)


def _before(net: Network, first: Tensor, second: Tensor, descending: bool) -> Tensor:
    """Whether the first of two different elements comes before the second one."""
    if descending:
        first, second = second, first
    less = net.elementwise("LESS", first, second)
    if not first.dtype.is_floating_point:
        return less
    number = net.unary("NOT", net.unary("ISNAN", first))
    return net.elementwise("OR", less, net.elementwise("AND", number, net.unary("ISNAN", second)))


def _sorted_rows(net: Network, rows: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """The last dimension in order, equal elements in the order of their places."""
    size = rows.shape[-1]
    assert isinstance(size, int)
    values, places = net.top_k(rows, size, -1, largest=descending)
    if size == 1:
        return values, places
    # Equal elements form a group. The number of the group and the place are one whole number, no two of which are
    # equal, and sorting those leaves each group where it is.
    changes = net.unary("NOT", _same(net, net.narrow(values, -1, 1, size - 1), net.narrow(values, -1, 0, size - 1)))
    first = [0] * rows.rank
    first[-1] = 1
    changes = net.pad(net.cast(changes, torch.int32), first, [0] * rows.rank)
    offsets = net.elementwise("PROD", net.cumulative_sum(changes, -1), net.tensor(size, torch.int32))
    keys, _ = net.top_k(net.elementwise("SUM", offsets, places), size, -1, largest=False)
    return values, net.elementwise("SUB", keys, offsets)


def _merged_rows(net: Network, rows: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """The same of more elements than TensorRT sorts at once."""
    *outer, size = rows.shape
    assert isinstance(size, int)
    chunks = -(-size // MOST_AT_ONCE)
    length = -(-size // chunks)
    total, count = chunks * length, volume(outer)
    # What is added comes last: its places are, and nothing comes after it.
    flat = net.pad(net.reshape(rows, (count, size)), [0, 0], [0, total - size], value=_last(rows.dtype, descending))
    values, places = _sorted_rows(net, net.reshape(flat, (count, chunks, length)), descending)
    elements = net.reshape(values, (count, 1, total))
    chunk = net.constant(torch.arange(chunks, dtype=torch.int32).reshape(chunks, 1))
    own_chunk = net.constant(torch.arange(chunks, dtype=torch.int32).repeat_interleave(length).reshape(1, 1, total))
    own_place = net.constant(torch.arange(length, dtype=torch.int32).repeat(chunks).reshape(1, 1, total))
    earlier = net.elementwise("LESS", chunk, own_chunk)
    # In every chunk the number of elements that come before each: bit by bit, from the highest.
    before = net.expand(net.tensor(0, torch.int32), (count, chunks, total))
    for bit in reversed(range(length.bit_length())):
        more = net.binary("SUM", before, 1 << bit)
        at = net.binary("SUB", net.binary("MIN", more, length), 1)
        other = net.gather_elements(values, at, -1)
        equal = net.elementwise("AND", earlier, _same(net, other, elements))
        precedes = net.elementwise("OR", equal, _before(net, other, elements, descending))
        inside = net.binary("LESS", more, length + 1)
        before = net.select(net.elementwise("AND", inside, precedes), more, before)
    before = net.select(net.elementwise("EQUAL", chunk, own_chunk), own_place, before)
    order = net.reduce("SUM", before, [1], False)
    offsets = net.binary("PROD", own_chunk, length)
    places = net.elementwise("SUM", net.reshape(places, (count, 1, total)), offsets)

    def ordered(each: Tensor) -> Tensor:
        each = net.reshape(each, (count, total))
        return net.reshape(net.narrow(net.scatter_elements(each, order, each, 1), 1, 0, size), rows.shape)

    return ordered(elements), ordered(places)


def _last(dtype: torch.dtype, descending: bool) -> float:
    """What nothing comes after."""
    if dtype.is_floating_point:
        return -math.inf if descending else math.nan
    return torch.iinfo(dtype).min if descending else torch.iinfo(dtype).max


@converter(aten.sort.default, aten.sort.stable, unsupported=_sort_unsupported)
def sort(net: Network, input: Tensor, dim: int, descending: bool, stable: bool | None = False) -> tuple[Tensor, Tensor]:
    """sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor, Tensor)"""
    if input.rank == 0:
        return input, net.tensor(0)
    values, places = _sorted(net, input, dim, descending=descending, stable=bool(stable))
    return values, net.cast(places, torch.int64)


@converter(aten.argsort.default, aten.argsort.stable, unsupported=_sort_unsupported)
def argsort(net: Network, input: Tensor, dim: int, descending: bool, stable: bool = False) -> Tensor:
    """argsort.stable(Tensor self, *, bool stable, int dim=-1, bool descending=False) -> Tensor"""
    return sort(net, input, dim, descending, stable)[1]


def filled(net: Network, rows: Tensor, count: int, value: float) -> Tensor:
    """Rows, of which there may be a dynamic number, up to a number of them."""
    if rows.shape[0] == count:
        return rows
    sizes = (count, *rows.shape[1:])
    fill = net.tensor(value, rows.dtype)
    return net.slice(rows, [0] * rows.rank, sizes, [1] * rows.rank, mode="FILL", fill=fill)


def lexicographic(net: Network, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, width] in the order of their first elements, of equal ones in that of the second, and so on.

    There may be a dynamic number of them, but not of elements.

    Returns:
        The rows, equal ones in the order of their places, and those places, INT32: n, and then as many as there may be.
    """
    number, width = rows.shape
    count = largest(number, net.ranges)
    # What is added comes last: it is not before any row, and its places are.
    keys = filled(net, rows, count, _last(rows.dtype, descending=False))
    order: Tensor | None = None
    for column in reversed(range(int(width))):
        key = net.squeeze(net.narrow(keys, 1, column, 1), 1)
        key = key if order is None else net.gather(key, order, 0)
        _, places = _sorted(net, key, 0, descending=False, stable=True)
        order = places if order is None else net.gather(order, places, 0)
    assert order is not None
    return net.gather(rows, net.narrow(order, 0, 0, number), 0), order


# -- what is read off --------------------------------------------------------------------------------------------------


def _kth(net: Network, input: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor]:
    """The k-th smallest, counted from 1, and its INT64 place; the dimension keeps size 1."""
    size = input.shape[dim]
    assert isinstance(size, int)
    from_above = size + 1 - k
    if min(k, from_above) <= MOST_AT_ONCE:
        largest = from_above < k
        count = min(k, from_above)
        values, places = net.top_k(input, count, dim, largest=largest)
    else:
        values, places = _sorted(net, input, dim, descending=False, stable=False)
        count = k
    return net.narrow(values, dim, count - 1, 1), net.cast(net.narrow(places, dim, count - 1, 1), torch.int64)


@converter(aten.kthvalue.default, unsupported=_sort_unsupported)
def kthvalue(net: Network, input: Tensor, k: int, dim: int, keepdim: bool) -> tuple[Tensor, ...]:
    """kthvalue(Tensor self, SymInt k, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    if input.rank == 0:
        return input, net.tensor(0)
    return _shaped(net, *_kth(net, input, k, dim))


def _shaped(net: Network, *results: Tensor) -> tuple[Tensor, ...]:
    """Each in the shape that the graph says."""
    return tuple(
        net.reshape(each, spec.shape) for each, spec in zip(results, net.results, strict=True) if spec is not None
    )


def _median_of(net: Network, input: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    size = input.shape[dim]
    assert isinstance(size, int)
    values, places = _kth(net, input, (size + 1) // 2, dim)
    if not input.dtype.is_floating_point:
        return values, places
    # One that is no number makes all of it none.
    is_nan = net.unary("ISNAN", input)
    broken = net.reduce("MAX", is_nan, [dim], True)
    values = net.select(broken, net.tensor(math.nan, input.dtype), values)
    return values, net.select(broken, first_extreme(net, is_nan, dim, largest=True), places)


def _nanmedian_of(net: Network, input: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    if not input.dtype.is_floating_point:
        return _median_of(net, input, dim)
    values, places = _sorted(net, input, dim, descending=False, stable=False)
    numbers = net.cast(net.unary("NOT", net.unary("ISNAN", input)), torch.int32)
    count = net.reduce("SUM", numbers, [dim], True)
    middle = net.binary("FLOOR_DIV", net.binary("MAX", net.binary("SUB", count, 1), 0), 2)
    return tuple(  # type: ignore[return-value]
        net.gather_elements(each, middle, dim) for each in (values, net.cast(places, torch.int64))
    )


Median = Callable[[Network, Tensor, int], tuple[Tensor, Tensor]]


def _of_all(median: Median) -> Callable[..., Tensor]:
    def converted(net: Network, input: Tensor) -> Tensor:
        return net.reshape(median(net, net.flatten(input), 0)[0], ())

    return converted


def _along(median: Median) -> Callable[..., tuple[Tensor, ...]]:
    def converted(net: Network, input: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, ...]:
        if input.rank == 0:
            return input, net.tensor(0)
        return _shaped(net, *median(net, input, dim))

    return converted


def _all_unsupported(input: TensorSpec) -> str | None:
    return _sort_unsupported(TensorSpec((volume(input.shape),), input.dtype))


for _packet, _median in ((aten.median, _median_of), (aten.nanmedian, _nanmedian_of)):
    converter(_packet.default, unsupported=_all_unsupported)(_of_all(_median))
    converter(_packet.dim, unsupported=_sort_unsupported)(_along(_median))


def _quantile_unsupported(
    input: TensorSpec, q: TensorSpec | float, dim: int | None, interpolation: str, **_: object
) -> str | None:
    if isinstance(q, TensorSpec) and interpolation != "linear":
        return f"the {interpolation} of two elements at a place that float32 rounds: pass q as a number"
    return _all_unsupported(input) if dim is None else _sort_unsupported(input, dim)


def _quantile_places(
    net: Network, q: Tensor | float, size: int, interpolation: str, dtype: torch.dtype
) -> list[Tensor]:
    """By quantile the places of the sorted elements below and above it, INT32, and the share of the second."""
    if isinstance(q, Tensor):
        rank = net.binary("PROD", net.reshape(q, (volume(q.shape),)), float(size - 1))
        below = net.unary("FLOOR", rank)
        ends = [net.cast(end, torch.int32) for end in (below, net.unary("CEIL", rank))]
        return [*ends, net.elementwise("SUB", rank, below)]
    # As torch computes it, in float64 from the number as a tensor of the input's dtype.
    place = torch.tensor([q], dtype=dtype).double() * (size - 1)
    places = place.floor(), place.ceil()
    match interpolation:
        case "lower" | "higher" | "nearest":
            chosen = {"lower": places[0], "higher": places[1], "nearest": place.round()}[interpolation]
            places = chosen, chosen
    share = torch.tensor([0.5]) if interpolation == "midpoint" else place - places[0]
    return [net.constant(each.int()) for each in places] + [net.constant(share.to(dtype))]


@converter(aten.quantile.default, aten.quantile.scalar, unsupported=_quantile_unsupported)
def quantile(
    net: Network, input: Tensor, q: Tensor | float, dim: int | None, keepdim: bool, interpolation: str
) -> Tensor:
    """quantile(Tensor self, Tensor q, int? dim=None, bool keepdim=False, *, str interpolation='linear') -> Tensor"""
    rows, dim = _rows_along(net, input, dim)
    size = rows.shape[-1]
    assert isinstance(size, int)
    values, _ = _sorted(net, rows, -1, descending=False, stable=False)
    below, above, share = _quantile_places(net, q, size, interpolation, input.dtype)
    result = _between(net, net.gather(values, below, -1), net.gather(values, above, -1), share)
    broken = net.reduce("MAX", net.unary("ISNAN", rows), [-1], True)
    return _by_quantile(net, net.select(broken, net.tensor(math.nan, input.dtype), result), dim)


def _nanquantile_unsupported(input: TensorSpec, dim: int | None, interpolation: str, **_: object) -> str | None:
    if interpolation != "linear":
        return f"the {interpolation} of two elements at a place that float32 rounds: use quantile, or linear"
    return _all_unsupported(input) if dim is None else _sort_unsupported(input, dim)


@converter(aten.nanquantile.default, aten.nanquantile.scalar, unsupported=_nanquantile_unsupported)
def nanquantile(
    net: Network, input: Tensor, q: Tensor | float, dim: int | None, keepdim: bool, interpolation: str
) -> Tensor:
    """nanquantile(Tensor self, Tensor q, int? dim=None, bool keepdim=False, *, str interpolation='linear') -> Tensor"""
    rows, dim = _rows_along(net, input, dim)
    values, _ = _sorted(net, rows, -1, descending=False, stable=False)  # what is no number comes last
    numbers = net.cast(net.unary("NOT", net.unary("ISNAN", rows)), torch.float32)
    most = net.binary("MAX", net.binary("SUB", net.reduce("SUM", numbers, [-1], True), 1.0), 0.0)
    shares = net.reshape(q, (volume(q.shape),)) if isinstance(q, Tensor) else net.tensor(q, input.dtype)
    rank = net.binary("PROD", most, net.cast(shares, torch.float32))
    below, above = net.unary("FLOOR", rank), net.unary("CEIL", rank)
    lower, upper = (net.gather_elements(values, net.cast(places, torch.int32), -1) for places in (below, above))
    share = net.cast(net.elementwise("SUB", rank, below), input.dtype)
    return _by_quantile(net, _between(net, lower, upper, share), dim)


def _rows_along(net: Network, input: Tensor, dim: int | None) -> tuple[Tensor, int]:
    """A dimension as the last one, and where it was; all elements as one row without it."""
    if dim is None or input.rank == 0:
        return net.flatten(input), 0
    return net.transpose(input, dim, input.rank - 1), dim % input.rank


def _between(net: Network, lower: Tensor, upper: Tensor, share: Tensor) -> Tensor:
    return net.elementwise("SUM", lower, net.elementwise("PROD", net.elementwise("SUB", upper, lower), share))


def _by_quantile(net: Network, result: Tensor, dim: int) -> Tensor:
    """The quantiles, which lie along the last dimension, first, and the dimension that was swapped back."""
    last = result.rank - 1
    each = net.unsqueeze(net.permute(result, [last, *range(last)]), -1)
    return net.reshape(net.transpose(each, dim + 1, last + 1), net.result.shape)


_MOST_COMPARED = 4096


def _mode_unsupported(input: TensorSpec, dim: int, **_: object) -> str | None:
    size: Size = input.shape[dim] if input.rank else 1
    if not isinstance(size, int):
        return "compares all elements of a dynamic dimension"
    if size > _MOST_COMPARED:
        return f"compares each of {size} elements with all others, {_MOST_COMPARED} at most"
    return None


@converter(aten.mode.default, unsupported=_mode_unsupported)
def mode(net: Network, input: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, ...]:
    """mode(Tensor self, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    if input.rank == 0:
        return input, net.tensor(0)
    if input.dtype == torch.bool or input.dtype in BYTES:
        values, places = mode(net, net.cast(input, torch.int32), dim, keepdim)
        return net.cast(values, input.dtype), places
    size, last = input.shape[dim], input.rank - 1
    rows = net.transpose(input, dim, last)
    pairs = net.elementwise("EQUAL", net.unsqueeze(rows, -1), net.unsqueeze(rows, -2))
    # What is no number is equal to nothing, but is there once.
    frequency = net.binary("MAX", net.reduce("SUM", net.cast(pairs, torch.int32), [-1], False), 1)
    often = net.elementwise("EQUAL", frequency, net.reduce("MAX", frequency, [-1], True))
    beyond = math.inf if rows.dtype.is_floating_point else torch.iinfo(rows.dtype).max
    least = net.reduce("MIN", net.select(often, rows, net.tensor(beyond, rows.dtype)), [-1], True)
    # The last of the smallest, else of those that are no numbers.
    places = places_along(net, rows, -1)
    chosen = net.elementwise("AND", often, net.elementwise("EQUAL", rows, least))
    ranks = net.select(often, places, net.tensor(-1, torch.int32))
    ranks = net.select(chosen, net.binary("SUM", places, size), ranks)
    found = net.reduce("MAX", ranks, [-1], True)
    found = net.select(net.binary("LESS", found, size), found, net.binary("SUB", found, size))
    values = net.gather_elements(rows, found, -1)
    return _shaped(net, *(net.transpose(each, dim, last) for each in (values, net.cast(found, torch.int64))))
