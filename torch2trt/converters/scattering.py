"""Writing by index: a tensor with some of its elements replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from torch2trt.converters.indexing import indexed_dims, indices_unsupported, is_adjacent, merged_index
from torch2trt.converters.registry import converter
from torch2trt.converters.scatter_reductions import added, adding_unsupported
from torch2trt.converters.shapes import position, slice_start, slice_unsupported
from torch2trt.sizes import DimRange, Size, TensorSpec, simplify, volume
from torch2trt.trt.dims import broadcast
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

# -- one dimension -----------------------------------------------------------------------------------------------------


def _insert(net: Network, input: Tensor, src: Tensor, dim: int, start: Size) -> Tensor:
    """The source in place of as many elements of a dimension."""
    end = start + src.shape[dim]
    rest = input.shape[dim] - end
    parts = [net.narrow(input, dim, 0, start), src, net.narrow(input, dim, end, rest)]
    return net.concat([part for part, size in zip(parts, (start, 1, rest), strict=True) if size != 0], dim)


@converter(aten.select_scatter.default)
def select_scatter(net: Network, input: Tensor, src: Tensor, dim: int, index: Size) -> Tensor:
    """select_scatter(Tensor self, Tensor src, int dim, SymInt index) -> Tensor"""
    dim %= input.rank
    src = net.cast(net.unsqueeze(src, dim), input.dtype)
    return _insert(net, input, src, dim, position(index, input.shape[dim]))


def _slice_scatter_unsupported(input: TensorSpec, dim: int, step: int, **arguments: Any) -> str | None:
    if step != 1 and not isinstance(input.shape[dim], int):
        return f"writes every {step} elements of a dynamic dimension"
    return slice_unsupported(input, dim, step=step, **arguments)


@converter(aten.slice_scatter.default, unsupported=_slice_scatter_unsupported)
def slice_scatter(
    net: Network, input: Tensor, src: Tensor, dim: int, start: Size | None, end: Size | None, step: int
) -> Tensor:
    """slice_scatter(Tensor self, Tensor src, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1)"""
    size, length = input.shape[dim], src.shape[dim]
    first = slice_start(start, end, step, size, length)
    src = net.cast(src, input.dtype)
    if step == 1:
        return _insert(net, input, src, dim, first)
    assert isinstance(size, int)
    assert isinstance(length, int)
    assert isinstance(first, int)
    places = torch.arange(size)
    places[first : first + step * length : step] = size + torch.arange(length)
    return net.gather(net.concat([input, src], dim), net.constant(places), dim)


@converter(aten.diagonal_scatter.default)
def diagonal_scatter(net: Network, input: Tensor, src: Tensor, offset: int, dim1: int, dim2: int) -> Tensor:
    """diagonal_scatter(Tensor self, Tensor src, int offset=0, int dim1=0, int dim2=1) -> Tensor"""
    dim1, dim2 = dim1 % input.rank, dim2 % input.rank
    order = [*(axis for axis in range(input.rank) if axis not in (dim1, dim2)), dim1, dim2]
    matrix = net.permute(input, order)
    rows, columns = matrix.shape[-2:]
    if 0 in src.shape:
        return input
    row, column = net.iota(offset, 1, rows, torch.int32), net.iota(0, 1, columns, torch.int32)
    on_diagonal = net.elementwise("EQUAL", net.unsqueeze(row, 1), net.unsqueeze(column, 0))
    # Above the main diagonal its elements are numbered by row, below by column.
    across = rows if offset >= 0 else columns
    none = [0] * (src.rank - 1)
    line = net.pad(net.cast(src, input.dtype), [0] * src.rank, [*none, across - src.shape[-1]])
    written = net.select(on_diagonal, net.unsqueeze(line, -1 if offset >= 0 else -2), matrix)
    return net.permute(written, [order.index(axis) for axis in range(input.rank)])


@converter(aten.scatter.src, aten.scatter.value)
def scatter(
    net: Network, input: Tensor, dim: int, index: Tensor, src: Tensor | None = None, value: float | None = None
) -> Tensor:
    """scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    if input.rank == 0:
        return net.reshape(src, ()) if src is not None else net.tensor(value, input.dtype)
    if src is None:
        src = net.expand(net.tensor(value, input.dtype), index.shape)
    for axis, size in enumerate(index.shape):
        src = net.narrow(src, axis, 0, size)
    return net.scatter_elements(input, index, src, dim)


# -- masks -------------------------------------------------------------------------------------------------------------


def _counted(net: Network, mask: Tensor, most: Size) -> Tensor:
    """For every element of a mask how many True ones come before it, up to a number of them, as one dimension."""
    one = net.tensor(1, torch.int32)
    count = net.cumulative_sum(net.cast(net.flatten(mask), torch.int32), 0)
    last = net.elementwise("SUB", net.tensor(most, torch.int32), one)
    # Up to the first True one there is none before; and a value that is alone is for all.
    return net.elementwise(
        "MIN", net.elementwise("MAX", net.elementwise("SUB", count, one), net.tensor(0, one.dtype)), last
    )


def _never_empty(net: Network, values: Tensor, axis: int) -> Tensor:
    """Values with one more behind, where there may be none, so that one can be read."""
    if not net.may_be_empty([values.shape[axis]]):
        return values
    return net.pad(values, [0] * values.rank, [int(each == axis) for each in range(values.rank)])


@converter(aten.masked_scatter.default)
def masked_scatter(net: Network, input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """masked_scatter(Tensor self, Tensor mask, Tensor source) -> Tensor"""
    shape = net.result.shape
    if 0 in (*shape, *source.shape):
        return net.expand(input, shape)
    mask = net.to_rank(mask.unexpanded or mask, len(shape))
    # Where the mask is the same along the last dimensions, they are taken from the source as a whole.
    inner = 0
    while inner < len(shape) and mask.shape[len(shape) - 1 - inner] == 1:
        inner += 1
    outer, width = shape[: len(shape) - inner], volume(shape[len(shape) - inner :])
    count = simplify(sympy.sympify(FloorDiv(volume(source.shape), width)))
    rows = net.reshape(net.narrow(net.flatten(source), 0, 0, count * width), (count, width))
    mask = net.expand(mask, (*outer, *(1,) * inner))
    picked = net.reshape(net.gather(_never_empty(net, rows, 0), _counted(net, mask, count), 0), shape)
    return net.select(mask, picked, net.expand(input, shape))


def _mask_place(indices: Sequence[Any]) -> int | None:
    """The dimension at which a mask begins that is the only index."""
    places = [place for place, index in enumerate(indices) if index is not None]
    return places[0] if len(places) == 1 and indices[places[0]].dtype == torch.bool else None


def _put_by_mask(net: Network, input: Tensor, mask: Tensor, place: int, values: Tensor, accumulate: bool) -> Tensor:
    """Values [*before, count, *after], or what broadcasts to that, in order where a mask is True.

    Args:
        input: [*before, *mask, *after].
        place: the number of dimensions before the mask.
    """
    before, after = (1,) * place, (1,) * (input.rank - place - mask.rank)
    values = net.to_rank(values, place + 1 + len(after))
    count = values.shape[place]
    if count == 1:
        shape = (*values.shape[:place], *(1,) * mask.rank, *values.shape[place + 1 :])
    else:
        values = net.gather(_never_empty(net, values, place), _counted(net, mask, count), place)
        shape = (*values.shape[:place], *mask.shape, *values.shape[place + 1 :])
    values = net.reshape(values, shape)
    if accumulate:
        values = net.elementwise("SUM", input, values)
    return net.select(net.reshape(mask, (*before, *mask.shape, *after)), values, input)


# -- several dimensions ------------------------------------------------------------------------------------------------


def _index_put_unsupported(
    input: TensorSpec,
    indices: Sequence[TensorSpec | None],
    accumulate: bool,
    ranges: Mapping[str, DimRange],
    **_: Any,
) -> str | None:
    if _mask_place(indices) is not None:
        return None
    if reason := indices_unsupported(indices):
        return reason
    if not accumulate:
        return None
    index = broadcast(*(index.shape for index in indices if index is not None))
    return adding_unsupported(input.shape, indexed_dims(indices), index, ranges)


@converter(aten.index_put.default, aten._unsafe_index_put.default, unsupported=_index_put_unsupported)
def index_put(
    net: Network, input: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool
) -> Tensor:
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    if any(0 in tensor.shape for tensor in (input, values, *indices) if tensor is not None):
        return input
    values = net.cast(values, input.dtype)
    mask_place = _mask_place(indices)
    if mask_place is not None:
        mask = indices[mask_place]
        assert mask is not None
        return _put_by_mask(net, input, mask, mask_place, values, accumulate)
    dims = indexed_dims(indices)
    others = [axis for axis in range(input.rank) if axis not in dims]
    picked = merged_index(net, [input.shape[axis] for axis in dims], [index for index in indices if index is not None])
    # Values have the shape that reading by these indices has; the indexed dimensions are brought to the front of both.
    place = dims[0] if is_adjacent(dims) else 0
    rest = [input.shape[axis] for axis in others]
    values = net.expand(values, (*rest[:place], *picked.shape, *rest[place:]))
    middle = range(place, place + picked.rank)
    values = net.permute(values, [*middle, *(axis for axis in range(values.rank) if axis not in middle)])
    front = net.permute(input, dims + others)
    flat = net.reshape(front, (volume(front.shape[: len(dims)]), *rest))
    if accumulate:
        entries = net.reshape(values, (volume(picked.shape), *rest))
        written = added(net, flat, net.flatten(picked), entries)
    else:
        written = net.scatter_nd(flat, net.unsqueeze(picked, -1), values)
    written = net.reshape(written, front.shape)
    return net.permute(written, [(dims + others).index(axis) for axis in range(input.rank)])
