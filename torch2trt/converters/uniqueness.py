"""What there is once: of equal elements, or rows, that follow each other the first, and of all of them in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from torch2trt.converters.reasons import shape_of_negative, wrong_dtype
from torch2trt.converters.registry import converter
from torch2trt.converters.selection import no_selection, selected_places
from torch2trt.converters.sorting import MOST_SORTED, filled, lexicographic
from torch2trt.sizes import DimRange, Shape, Size, TensorSpec, largest, volume
from torch2trt.trt.core import BYTES
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_MOST_COLUMNS = 16  # each is sorted by, one after the other


def _result_unsupported(
    used: Collection[int], return_inverse: bool, return_counts: bool, results: Sequence[TensorSpec]
) -> str | None:
    if (1 in used and not return_inverse) or (2 in used and not return_counts):
        return "a result that was not asked for, which is empty"
    return wrong_dtype((results[place] for place in used if place), torch.int64)


def _order_unsupported(shape: Shape, dim: int | None, ranges: Mapping[str, DimRange]) -> str | None:
    """Why rows along a dimension, or all elements, cannot be brought in order."""
    number, width = _extents(shape, dim)
    if not isinstance(width, int):
        return "rows of a dynamic number of elements"
    if width > _MOST_COLUMNS:
        return f"rows of {width} elements, by each of which they would be sorted: {_MOST_COLUMNS} at most"
    if (most := largest(number, ranges)) > MOST_SORTED:
        return f"sorts {most} elements, which takes too much memory: {MOST_SORTED} at most"
    return None


def _extents(shape: Shape, dim: int | None) -> tuple[Size, Size]:
    """How many rows there are along a dimension, or elements in all, and of how many elements."""
    if dim is None:
        return volume(shape), 1
    dim %= len(shape)
    return shape[dim], volume((*shape[:dim], *shape[dim + 1 :]))


def _rows(net: Network, input: Tensor, dim: int | None) -> Tensor:
    """The rows along a dimension, or all elements, [n, width], in a dtype that can be compared."""
    if input.dtype == torch.bool or input.dtype in BYTES:
        input = net.cast(input, torch.int32)
    if dim is not None:
        dim %= input.rank
        input = net.permute(input, [dim, *(axis for axis in range(input.rank) if axis != dim)])
    return net.reshape(input, _extents(input.shape, None if dim is None else 0))


def _first_of_each(net: Network, rows: Tensor) -> Tensor:
    """Whether a row [n, width] differs from the one before it, BOOL [n]; NaN differs from all."""
    number = rows.shape[0]
    earlier = net.pad(rows, [1, 0], [-1, 0])
    differs = net.reduce("MAX", net.unary("NOT", net.elementwise("EQUAL", rows, earlier)), [1], False)
    return net.elementwise("OR", differs, net.binary("EQUAL", net.iota(0, 1, number, torch.int32), 0))


def _runs(net: Network, first: Tensor, *, numbered: bool, counted: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Where runs begin, INT32; if wanted, INT64, the number of each element's run, and how long they are."""
    begins = selected_places(net, first)
    numbers = lengths = None
    if numbered:
        numbers = net.binary("SUB", net.cumulative_sum(net.cast(first, torch.int32), 0), 1)
    if counted:
        (count,) = begins.shape
        end = net.reshape(net.tensor(first.shape[0], torch.int32), (1,))
        ends = net.narrow(net.concat([begins, end], 0), 0, 1, count)
        lengths = net.cast(net.elementwise("SUB", ends, begins), torch.int64)
    return begins, numbers, lengths


def _picked(net: Network, input: Tensor, places: Tensor, dim: int | None) -> Tensor:
    return net.gather(net.flatten(input), places, 0) if dim is None else net.gather(input, places, dim)


# -- in the order that they have ---------------------------------------------------------------------------------------


def _consecutive_unsupported(
    input: TensorSpec,
    return_inverse: bool,
    return_counts: bool,
    flavour: Flavour,
    used: Collection[int],
    results: Sequence[TensorSpec],
    dim: int | None,
) -> str | None:
    if dim is not None:
        found = list(input.shape)
        found[dim] = results[0].shape[dim % input.rank]
        if reason := shape_of_negative(results[0].shape, tuple(found), "dim"):
            return reason
    return no_selection(input.shape, flavour) or _result_unsupported(used, return_inverse, return_counts, results)


def _at_most(input: TensorSpec, dim: int | None = None, **_: object) -> Size:
    return _extents(input.shape, dim)[0]


@converter(aten.unique_consecutive.default, unsupported=_consecutive_unsupported, at_most=_at_most)
def unique_consecutive(
    net: Network, input: Tensor, return_inverse: bool, return_counts: bool, dim: int | None
) -> tuple[Tensor | None, ...]:
    """unique_consecutive(Tensor self, bool return_inverse=False, bool return_counts=False, int? dim=None)"""
    first = _first_of_each(net, _rows(net, input, dim))
    begins, numbers, lengths = _runs(net, first, numbered=return_inverse, counted=return_counts)
    if numbers is not None:
        numbers = net.cast(net.reshape(numbers, input.shape) if dim is None else numbers, torch.int64)
    return _picked(net, input, begins, dim), numbers, lengths


# -- sorted ------------------------------------------------------------------------------------------------------------


def _unique_unsupported(
    input: TensorSpec,
    return_inverse: bool,
    return_counts: bool,
    flavour: Flavour,
    used: Collection[int],
    ranges: Mapping[str, DimRange],
    results: Sequence[TensorSpec],
    dim: int | None = None,
    **_: object,
) -> str | None:
    return (
        no_selection(input.shape, flavour)
        or _result_unsupported(used, return_inverse, return_counts, results)
        or _order_unsupported(input.shape, dim, ranges)
    )


@converter(aten._unique2.default, unsupported=_unique_unsupported, at_most=_at_most)
@converter(aten.unique_dim.default, unsupported=_unique_unsupported, at_most=_at_most)
def unique(
    net: Network, input: Tensor, return_inverse: bool, return_counts: bool, dim: int | None = None, **_: object
) -> tuple[Tensor | None, ...]:
    """unique_dim(Tensor self, int dim, bool sorted=True, bool return_inverse=False, bool return_counts=False)"""
    rows, order = lexicographic(net, _rows(net, input, dim))
    begins, numbers, lengths = _runs(net, _first_of_each(net, rows), numbered=return_inverse, counted=return_counts)
    if numbers is not None:
        most = order.shape[0]
        assert isinstance(most, int)
        sparse = filled(net, numbers, most, 0)
        numbers = net.narrow(net.scatter_elements(sparse, order, sparse, 0), 0, 0, numbers.shape[0])
        numbers = net.cast(net.reshape(numbers, input.shape) if dim is None else numbers, torch.int64)
    return _picked(net, input, net.gather(order, begins, 0), dim), numbers, lengths
