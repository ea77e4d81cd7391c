"""Writing by index: a tensor with some of its elements replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.indexing import indexed_dims, indices_unsupported, is_adjacent, merged_index
from torch2trt.converters.registry import converter
from torch2trt.converters.shapes import position, slice_start, slice_unsupported
from torch2trt.sizes import Size, TensorSpec, volume
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


# -- several dimensions ------------------------------------------------------------------------------------------------


def _is_mask(indices: Sequence[Any]) -> bool:
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool


def _index_put_unsupported(
    input: TensorSpec, indices: Sequence[TensorSpec | None], values: TensorSpec, accumulate: bool
) -> str | None:
    if accumulate:
        return "adds up what is written to the same place"
    if _is_mask(indices):
        (mask,) = indices
        assert mask is not None
        inner = input.rank - mask.rank
        if values.rank <= inner or all(size == 1 for size in values.shape[: values.rank - inner]):
            return None
    return indices_unsupported(indices)


@converter(aten.index_put.default, aten._unsafe_index_put.default, unsupported=_index_put_unsupported)
def index_put(
    net: Network, input: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool
) -> Tensor:
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    values = net.cast(values, input.dtype)
    if _is_mask(indices):
        (mask,) = indices
        assert mask is not None
        return net.select(net.reshape(mask, (*mask.shape, *(1,) * (input.rank - mask.rank))), values, input)
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
    written = net.reshape(net.scatter_nd(flat, net.unsqueeze(picked, -1), values), front.shape)
    return net.permute(written, [(dims + others).index(axis) for axis in range(input.rank)])
