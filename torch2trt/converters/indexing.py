"""Reading by index, and what picks elements by their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.converters.selection import no_selection, without_masks
from torch2trt.sizes import Size, TensorSpec, volume
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

# -- slices and elements along one dimension ---------------------------------------------------------------------------


@converter(aten.embedding.default)
def embedding(net: Network, weight: Tensor, indices: Tensor, **_: Any) -> Tensor:
    """embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, ...) -> Tensor"""
    return net.gather(weight, indices, 0)


def at_least_1d(net: Network, tensor: Tensor) -> Tensor:
    """A scalar as a vector of one element; others as they are."""
    return net.to_rank(tensor, max(tensor.rank, 1))


@converter(aten.index_select.default)
def index_select(net: Network, input: Tensor, dim: int, index: Tensor) -> Tensor:
    """index_select(Tensor self, int dim, Tensor index) -> Tensor"""
    picked = net.gather(at_least_1d(net, input), at_least_1d(net, index), dim)
    return net.reshape(picked, net.result.shape)


@converter(aten.gather.default)
def gather(net: Network, input: Tensor, dim: int, index: Tensor, **_: Any) -> Tensor:
    """gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor"""
    if 0 in index.shape:
        # Torch takes indices of any dtype where there are none.
        return net.expand(net.tensor(0, input.dtype), index.shape)
    input, index = at_least_1d(net, input), at_least_1d(net, index)
    dim %= input.rank
    for axis, size in enumerate(index.shape):
        if axis != dim:
            input = net.narrow(input, axis, 0, size)
    return net.reshape(net.gather_elements(input, index, dim), net.result.shape)


@converter(aten.take.default)
def take(net: Network, input: Tensor, index: Tensor) -> Tensor:
    """take(Tensor self, Tensor index) -> Tensor"""
    return net.gather(net.flatten(input), from_front(net, index, volume(input.shape)), 0)


# -- several indices ---------------------------------------------------------------------------------------------------


def from_front(net: Network, index: Tensor, size: Size) -> Tensor:
    """Indices with the negative ones counted from the front."""
    if index.value is not None and not (index.value < 0).any():
        return index
    negative = net.binary("LESS", index, 0)
    return net.select(negative, net.binary("SUM", index, net.tensor(size, index.dtype)), index)


def indices_unsupported(indices: Sequence[TensorSpec | None], **_: Any) -> str | None:
    """Why indices of several dimensions, none of them a mask, cannot be used."""
    for index in indices:
        if index is not None and index.dtype not in (torch.int32, torch.int64):
            return f"indices of {index.dtype}: how many elements they select depends on their values"
    return None


def _index_unsupported(indices: Sequence[TensorSpec | None], flavour: Flavour, **_: Any) -> str | None:
    for index in indices:
        if index is not None and index.dtype == torch.bool and (reason := no_selection(index.shape, flavour)):
            return reason
    return indices_unsupported([index for index in indices if index is None or index.dtype != torch.bool])


def _index_at_most(indices: Sequence[TensorSpec | None], **_: Any) -> Size:
    # Of several, all find the same number.
    return next(volume(index.shape) for index in indices if index is not None and index.dtype == torch.bool)


def is_adjacent(dims: Sequence[int]) -> bool:
    """Whether dimensions follow one another."""
    return list(dims) == list(range(dims[0], dims[0] + len(dims)))


def indexed_dims(indices: Sequence[Any]) -> list[int]:
    """The dimensions that have an index."""
    return [axis for axis, index in enumerate(indices) if index is not None]


def merged_index(net: Network, shape: Sequence[Size], indices: Sequence[Tensor]) -> Tensor:
    """One index of several dimensions taken together, from broadcast indices of each."""
    merged = from_front(net, indices[0], shape[0])
    for size, index in zip(shape[1:], indices[1:], strict=True):
        merged = net.binary("PROD", merged, net.tensor(size, merged.dtype))
        merged = net.binary("SUM", merged, from_front(net, index, size))
    return merged


@converter(aten.index.Tensor, aten._unsafe_index.Tensor, unsupported=_index_unsupported, at_most=_index_at_most)
def index(net: Network, input: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """index.Tensor(Tensor self, Tensor?[] indices) -> Tensor"""
    if any(index is not None and index.dtype == torch.bool for index in indices):
        input, indices = without_masks(net, input, indices)
    dims = indexed_dims(indices)
    if not is_adjacent(dims):
        # The dimensions of the indices come first in the result.
        input = net.permute(input, dims + [axis for axis in range(input.rank) if axis not in dims])
        indices, dims = [indices[axis] for axis in dims], list(range(len(dims)))
    first, last = dims[0], dims[-1] + 1
    sizes = input.shape[first:last]
    merged = merged_index(net, sizes, [index for index in indices if index is not None])
    flat = net.reshape(input, (*input.shape[:first], volume(sizes), *input.shape[last:]))
    return net.gather(flat, merged, first)


# -- places ------------------------------------------------------------------------------------------------------------


@converter(aten.unfold.default)
def unfold(net: Network, input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """unfold(Tensor(a) self, int dimension, int size, int step) -> Tensor(a)"""
    input = at_least_1d(net, input)
    dimension %= input.rank
    count = net.result.shape[dimension] if net.result.rank > 1 else 1
    starts, offsets = net.iota(0, step, count, torch.int64), net.iota(0, 1, size, torch.int64)
    places = net.elementwise("SUM", net.unsqueeze(starts, 1), net.unsqueeze(offsets, 0))
    windows = net.gather(input, places, dimension)
    axes = [axis for axis in range(windows.rank) if axis != dimension + 1]
    return net.reshape(net.permute(windows, [*axes, dimension + 1]), net.result.shape)


_MOST_OVERLAPS = 64


def _unfold_backward_unsupported(size: int, step: int, **_: Any) -> str | None:
    if size > _MOST_OVERLAPS * step:
        return f"adds up more than {_MOST_OVERLAPS} windows that overlap (windows of {size}, {step} apart)"
    return None


@converter(aten.unfold_backward.default, unsupported=_unfold_backward_unsupported)
def unfold_backward(
    net: Network, grad_in: Tensor, input_sizes: Sequence[Size], dim: int, size: int, step: int
) -> Tensor:
    """unfold_backward(Tensor grad_in, SymInt[] input_sizes, int dim, int size, int step) -> Tensor"""
    # As blocks of one step each, a window is the block where it starts and those after it.
    rank = len(input_sizes)
    dim %= rank
    windows = net.transpose(grad_in, dim, rank - 1)
    *outer, count, _ = windows.shape
    blocks = -(-size // step)
    windows = net.pad(windows, [0] * (rank + 1), [*[0] * rank, blocks * step - size])
    windows = net.reshape(windows, (*outer, count, blocks, step))
    total: Tensor | None = None
    for block in range(blocks):
        part = net.reshape(net.narrow(windows, rank, block, 1), (*outer, count, step))
        around = [[*[0] * (rank - 1), amount, 0] for amount in (block, blocks - 1 - block)]
        part = net.pad(part, *around)
        total = part if total is None else net.elementwise("SUM", total, part)
    assert total is not None
    length = (count + blocks - 1) * step
    line = net.reshape(total, (*outer, length))
    line = net.pad(line, [0] * rank, [*[0] * (rank - 1), input_sizes[dim] - length])
    # istft has one row of windows for many of the result.
    return net.expand(net.transpose(line, dim, rank - 1), net.result.shape)


@converter(aten.diagonal.default)
def diagonal(net: Network, input: Tensor, offset: int, dim1: int, dim2: int) -> Tensor:
    """diagonal(Tensor(a) self, int offset=0, int dim1=0, int dim2=1) -> Tensor(a)"""
    dim1, dim2 = dim1 % input.rank, dim2 % input.rank
    input = net.permute(input, [*(axis for axis in range(input.rank) if axis not in (dim1, dim2)), dim1, dim2])
    rows, columns = input.shape[-2:]
    start = offset if offset >= 0 else -offset * columns
    places = net.iota(start, columns + 1, net.result.shape[-1], torch.int64)
    return net.gather(net.reshape(input, (*input.shape[:-2], rows * columns)), places, -1)


def _triangle(net: Network, input: Tensor, diagonal: int, *, upper: bool) -> Tensor:
    rows, columns = input.shape[-2:]
    kept = net.triangle(rows, columns, diagonal, upper=upper)
    return net.select(kept, input, net.tensor(0, input.dtype))


@converter(aten.tril.default)
def tril(net: Network, input: Tensor, diagonal: int) -> Tensor:
    """tril(Tensor self, SymInt diagonal=0) -> Tensor"""
    return _triangle(net, input, diagonal, upper=False)


@converter(aten.triu.default)
def triu(net: Network, input: Tensor, diagonal: int) -> Tensor:
    """triu(Tensor self, SymInt diagonal=0) -> Tensor"""
    return _triangle(net, input, diagonal, upper=True)


def _one_hot_unsupported(num_classes: int, **_: Any) -> str | None:
    return "the number of classes depends on the values: pass num_classes" if num_classes == -1 else None


@converter(aten.one_hot.default, unsupported=_one_hot_unsupported)
def one_hot(net: Network, input: Tensor, num_classes: int) -> Tensor:
    """one_hot(Tensor self, int num_classes=-1) -> Tensor"""
    classes = net.iota(0, 1, num_classes, input.dtype)
    return net.cast(net.elementwise("EQUAL", net.unsqueeze(input, -1), classes), torch.int64)
