"""Writing by index where what goes to the same place is reduced: sums, products, means, extremes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch2trt.converters.indexing import at_least_1d, from_front
from torch2trt.converters.reductions import accumulated
from torch2trt.converters.registry import converter
from torch2trt.converters.segments import group, grouping_unsupported
from torch2trt.sizes import DimRange, Size, TensorSpec, volume
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_OPERATIONS = {
    "sum": "SUM",
    "add": "SUM",
    "mean": "SUM",
    "prod": "PROD",
    "multiply": "PROD",
    "amax": "MAX",
    "amin": "MIN",
}


def combined(
    net: Network,
    input: Tensor,
    index: Tensor,
    source: Tensor,
    reduce: str = "sum",
    include_self: bool = True,
    *,
    origin: tuple[Any, ...] = (),
) -> Tensor:
    """The input with the reduction of the entries that go to each of its places.

    Args:
        input: [rows, places, width].
        index: [rows, entries], from 0.
        source: [rows, entries, width], of the input's dtype.
        reduce: as ``torch.scatter_reduce`` names it, or ``torch.scatter``.
        include_self: whether the input's own element takes part where there are entries.
        origin: as :func:`group` takes it.
    """
    operation = _OPERATIONS[reduce]
    own = accumulated(net, input, None)
    entries = group(net, index, input.shape[1], source.shape[2], origin=origin)
    result = entries.reduce(operation, accumulated(net, source, None))
    zero = net.tensor(0, torch.int32)
    if include_self:
        result = net.elementwise(operation, own, result)
    else:
        result = net.select(net.elementwise("GREATER", entries.counts(), zero), result, own)
    if reduce == "mean":
        # Of integers torch divides the sum as their type holds it.
        result = net.cast(net.cast(result, input.dtype), own.dtype) if own.dtype == torch.int64 else result
        counts, one = entries.counts(), net.tensor(1, torch.int32)
        counts = net.elementwise("SUM" if include_self else "MAX", counts, one)
        division = "DIV" if own.dtype in FLOAT_DTYPES else "FLOOR_DIV"
        result = net.elementwise(division, result, net.cast(counts, own.dtype))
    return net.cast(result, input.dtype)


# -- one index an element ----------------------------------------------------------------------------------------------


def _scatter_unsupported(
    input: TensorSpec, dim: int, index: TensorSpec, ranges: Mapping[str, DimRange], **_: Any
) -> str | None:
    if index.rank == 0:
        return None
    if index.dtype not in (torch.int32, torch.int64):
        return f"indices of {index.dtype}, which torch takes where there are none"
    others = volume(size for axis, size in enumerate(index.shape) if axis != dim % index.rank)
    return grouping_unsupported(index.shape[dim], input.shape[dim] if input.rank else 1, others, ranges)


def _enlarged(net: Network, part: Tensor, whole: Tensor) -> Tensor:
    """A tensor with its first elements in every dimension replaced."""
    axes = [axis for axis, size in enumerate(whole.shape) if size != part.shape[axis]]
    for axis in axes:
        rest = net.narrow(whole, axis, part.shape[axis], whole.shape[axis] - part.shape[axis])
        for other in axes:
            rest = net.narrow(rest, other, 0, part.shape[other]) if other != axis else rest
        part = net.concat([part, rest], axis)
    return part


@converter(aten.scatter_add.default, unsupported=_scatter_unsupported)
@converter(aten.scatter.reduce, aten.scatter.value_reduce, unsupported=_scatter_unsupported)
@converter(aten.scatter_reduce.two, unsupported=_scatter_unsupported)
def scatter_reduce(
    net: Network,
    input: Tensor,
    dim: int,
    index: Tensor,
    src: Tensor | None = None,
    value: float | None = None,
    reduce: str = "sum",
    include_self: bool = True,
) -> Tensor:
    """scatter_reduce.two(Tensor self, int dim, Tensor index, Tensor src, str reduce, *, bool include_self=True)"""
    if 0 in (*index.shape, *input.shape):
        return input
    if src is None:
        src = net.expand(net.tensor(value, input.dtype), index.shape)
    whole, index, src = (at_least_1d(net, tensor) for tensor in (input, index, src))
    dim %= whole.rank
    axes = [axis for axis in range(whole.rank) if axis != dim]
    part = whole
    for axis in axes:
        part = net.narrow(part, axis, 0, index.shape[axis])
    for axis, size in enumerate(index.shape):
        src = net.narrow(src, axis, 0, size)
    # Where the index was expanded, entries are vectors with one index each.
    narrow = index.unexpanded or index
    few = net.expand(narrow, [size if axis == dim else narrow.shape[axis] for axis, size in enumerate(index.shape)])
    rows = [axis for axis in axes if few.shape[axis] != 1]
    order = [*rows, dim, *(axis for axis in axes if axis not in rows)]

    def as_entries(tensor: Tensor) -> Tensor:
        shape = [tensor.shape[axis] for axis in order]
        matrix = volume(shape[: len(rows)]), shape[len(rows)], volume(shape[len(rows) + 1 :])
        return net.reshape(net.permute(tensor, order), matrix)

    places = net.squeeze(as_entries(few), 2)
    origin = (narrow, dim, places.shape)
    result = combined(net, as_entries(part), places, as_entries(src), reduce, include_self, origin=origin)
    result = net.reshape(result, [part.shape[axis] for axis in order])
    result = net.permute(result, [order.index(axis) for axis in range(whole.rank)])
    return net.reshape(_enlarged(net, result, whole), input.shape)


# -- one index a slice -------------------------------------------------------------------------------------------------


def _index_unsupported(
    input: TensorSpec, dim: int, index: TensorSpec, ranges: Mapping[str, DimRange], **_: Any
) -> str | None:
    if input.rank == 0:
        return None
    others = volume(size for axis, size in enumerate(input.shape) if axis != dim % input.rank)
    return grouping_unsupported(volume(index.shape), input.shape[dim], others, ranges)


@converter(aten.index_reduce.default, unsupported=_index_unsupported)
def index_reduce(
    net: Network, input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, include_self: bool = True
) -> Tensor:
    """index_reduce(Tensor self, int dim, Tensor index, Tensor source, str reduce, *, bool include_self=True)"""
    if 0 in (*source.shape, *input.shape):
        return input
    whole, source = at_least_1d(net, input), at_least_1d(net, source)
    dim %= whole.rank
    order = [dim, *(axis for axis in range(whole.rank) if axis != dim)]
    shape = [whole.shape[axis] for axis in order]

    def as_entries(tensor: Tensor) -> Tensor:
        return net.reshape(net.permute(tensor, order), (1, tensor.shape[dim], volume(shape[1:])))

    places = net.reshape(index, (1, volume(index.shape)))
    entries = as_entries(source)
    result = combined(net, as_entries(whole), places, entries, reduce, include_self, origin=(index,))
    result = net.reshape(result, shape)
    return net.reshape(net.permute(result, [order.index(axis) for axis in range(whole.rank)]), input.shape)


@converter(aten.index_add.default, unsupported=_index_unsupported)
def index_add(net: Network, input: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float) -> Tensor:
    """index_add(Tensor self, int dim, Tensor index, Tensor source, *, Scalar alpha=1) -> Tensor"""
    if alpha != 1:
        source = net.elementwise("PROD", source, net.tensor(alpha, source.dtype))
    return index_reduce(net, input, dim, index, source, "sum")


# -- places of all elements --------------------------------------------------------------------------------------------


def _put_unsupported(
    input: TensorSpec, index: TensorSpec, accumulate: bool, ranges: Mapping[str, DimRange], **_: Any
) -> str | None:
    return grouping_unsupported(volume(index.shape), volume(input.shape), 1, ranges) if accumulate else None


@converter(aten.put.default, unsupported=_put_unsupported)
def put(net: Network, input: Tensor, index: Tensor, source: Tensor, accumulate: bool) -> Tensor:
    """put(Tensor self, Tensor index, Tensor source, bool accumulate=False) -> Tensor"""
    if 0 in index.shape:
        return input
    flat, places, values = (net.flatten(tensor) for tensor in (input, index, source))
    places = from_front(net, places, flat.shape[0])
    if not accumulate:
        return net.reshape(net.scatter_elements(flat, places, values, 0), input.shape)
    return net.reshape(added(net, flat, places, values), input.shape)


def added(net: Network, input: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """The input [places, ...] with each entry of the source [entries, ...] added where its index [entries] says."""

    def as_entries(tensor: Tensor) -> Tensor:
        return net.reshape(tensor, (1, tensor.shape[0], volume(tensor.shape[1:])))

    return net.reshape(combined(net, as_entries(input), net.unsqueeze(index, 0), as_entries(source)), input.shape)


def adding_unsupported(
    shape: Sequence[Size], dims: Sequence[int], index: Sequence[Size], ranges: Mapping[str, DimRange]
) -> str | None:
    """Why slices of some dimensions of a shape, at indices that broadcast to a shape, cannot be added."""
    others = volume(size for axis, size in enumerate(shape) if axis not in dims)
    return grouping_unsupported(volume(index), volume(shape[axis] for axis in dims), others, ranges)
