"""Operators that only move data: views, slices, joins, repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import Max, Min, PythonMod

from torch2trt.converters.reasons import not_of_selections
from torch2trt.converters.registry import converter, refuse
from torch2trt.sizes import Size, TensorSpec, simplify, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_MOST_DIMENSIONS = 7  # TensorRT 10.6 gathers no more

refuse("aten.view.dtype", reason="TensorRT reads no bits of one type as numbers of another")

# -- views -------------------------------------------------------------------------------------------------------------


@converter(
    *(aten.reshape.default, aten.view.default, aten.unsqueeze.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
)
def reshape(net: Network, input: Tensor, **_: Any) -> Tensor:
    """reshape(Tensor(a) self, SymInt[] shape) -> Tensor(a)"""
    return net.reshape(input, net.result.shape)


@converter(aten.permute.default)
def permute(net: Network, input: Tensor, dims: Sequence[int]) -> Tensor:
    """permute(Tensor(a) self, int[] dims) -> Tensor(a)"""
    return net.permute(input, dims)


@converter(aten.transpose.int)
def transpose(net: Network, input: Tensor, dim0: int, dim1: int) -> Tensor:
    """transpose.int(Tensor(a) self, int dim0, int dim1) -> Tensor(a)"""
    return net.transpose(input, dim0, dim1) if input.rank else input


@converter(aten.t.default)
def t(net: Network, input: Tensor) -> Tensor:
    """t(Tensor(a) self) -> Tensor(a)"""
    return net.transpose(input, 0, 1) if input.rank == 2 else input


@converter(aten.expand.default)
def expand(net: Network, input: Tensor, **_: Any) -> Tensor:
    """expand(Tensor(a) self, SymInt[] size, *, bool implicit=False) -> Tensor(a)"""
    return net.expand(input, net.result.shape)


# -- slices ------------------------------------------------------------------------------------------------------------


def _is_end(end: Size | None, size: Size) -> bool:
    return end is None or end == size or (isinstance(end, int) and end >= 2**62)


def slice_start(start: Size | None, end: Size | None, step: int, size: Size, length: Size) -> Size:
    """Where a slice begins, clamped as torch does.

    Args:
        size: of the dimension.
        length: of the slice.
    """
    if start is None or start == 0:
        return 0
    if step == 1 and _is_end(end, size):
        return size - length
    return simplify(sympy.sympify(Max(0, start + size) if start < 0 else Min(start, size)))


def slice_unsupported(
    input: TensorSpec, dim: int, start: Size | None, end: Size | None, step: int, **_: Any
) -> str | None:
    """Why the start of a slice is unknown."""
    signed = not isinstance(start, sympy.Expr) or start.is_negative is not None
    if signed or (step == 1 and _is_end(end, input.shape[dim])):
        return None
    return f"the start of the slice, {start}, may be negative or not"


@converter(aten.slice.Tensor, unsupported=slice_unsupported)
def slice(net: Network, input: Tensor, dim: int, start: Size | None, end: Size | None, step: int) -> Tensor:
    """slice.Tensor(Tensor(a) self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor(a)"""
    length = net.result.shape[dim]
    return net.narrow(input, dim, slice_start(start, end, step, input.shape[dim], length), length, step)


def position(index: Size, size: Size) -> Size:
    """An index of a dimension counted from the front."""
    return index + size if index < 0 else index


@converter(aten.select.int)
def select(net: Network, input: Tensor, dim: int, index: Size) -> Tensor:
    """select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)"""
    return net.squeeze(net.narrow(input, dim, position(index, input.shape[dim]), 1), dim)


@converter(
    *(aten.split_with_sizes.default, aten.split.Tensor, aten.split.sizes, aten.chunk.default),
    *(aten.tensor_split.sections, aten.tensor_split.indices),
)
def split(net: Network, input: Tensor, dim: int, **_: Any) -> tuple[Tensor, ...]:
    """split_with_sizes(Tensor(a -> *) self, SymInt[] split_sizes, int dim=0) -> Tensor(a)[]"""
    start: Size = 0
    pieces: list[Tensor] = []
    for piece in net.results:
        assert piece is not None
        pieces.append(net.narrow(input, dim, start, piece.shape[dim]))
        start = start + piece.shape[dim]
    return tuple(pieces)


@converter(aten.unbind.int)
def unbind(net: Network, input: Tensor, dim: int) -> tuple[Tensor, ...]:
    """unbind.int(Tensor(a -> *) self, int dim=0) -> Tensor(a)[]"""
    return tuple(net.squeeze(net.narrow(input, dim, index, 1), dim) for index in range(len(net.results)))


# -- joins, repetitions, order -----------------------------------------------------------------------------------------


@converter(aten.cat.default, unsupported=not_of_selections)
def cat(net: Network, tensors: Sequence[Tensor], dim: int) -> Tensor:
    """cat(Tensor[] tensors, int dim=0) -> Tensor"""
    promoted = net.promote(*tensors)
    # torch lets an empty vector join anything.
    joined = [tensor for tensor in promoted if tensor.shape != (0,) and tensor.shape[dim] != 0]
    return net.concat(joined, dim) if joined else max(promoted, key=lambda tensor: tensor.rank)


@converter(aten.stack.default)
def stack(net: Network, tensors: Sequence[Tensor], dim: int) -> Tensor:
    """stack(Tensor[] tensors, int dim=0) -> Tensor"""
    dim %= tensors[0].rank + 1
    return net.concat([net.unsqueeze(tensor, dim) for tensor in net.promote(*tensors)], dim)


@converter(aten.repeat.default)
def repeat(net: Network, input: Tensor, repeats: Sequence[Size]) -> Tensor:
    """repeat(Tensor self, SymInt[] repeats) -> Tensor"""
    rank = max(len(repeats), input.rank)
    counts = [*[1] * (rank - len(repeats)), *repeats]
    return net.reshape(_repeated(net, input, counts, [*[1] * (rank - input.rank), *input.shape]), net.result.shape)


def _repeated(net: Network, input: Tensor, counts: Sequence[Size], sizes: Sequence[Size]) -> Tensor:
    """The elements of a tensor of some sizes so often in each dimension, in a shape of fewer dimensions."""
    # Where something is repeated, [a] → [1, a] → [n, a]; what is not goes with the dimension before it.
    apart: list[Size] = []
    grown: list[Size] = []
    for count, size in zip(counts, sizes, strict=True):
        if count != 1:
            apart.append(1)
            grown.append(count)
        if size == 1:
            continue
        if count == 1 and grown and apart[-1] == grown[-1]:
            apart[-1] = grown[-1] = apart[-1] * size
        else:
            apart.append(size)
            grown.append(size)
    if len(grown) <= _MOST_DIMENSIONS:
        return net.expand(net.reshape(input, apart), grown)
    # In half of the dimensions first.
    axes = [axis for axis, count in enumerate(counts) if count != 1]
    cut = axes[len(axes) // 2]
    input = _repeated(net, input, [*[1] * cut, *counts[cut:]], sizes)
    inner = [count * size for count, size in zip(counts[cut:], sizes[cut:], strict=True)]
    return _repeated(net, input, [*counts[:cut], *[1] * len(inner)], [*sizes[:cut], *inner])


@converter(aten.tile.default)
def tile(net: Network, input: Tensor, dims: Sequence[Size]) -> Tensor:
    """tile(Tensor self, SymInt[] dims) -> Tensor"""
    return repeat(net, input, dims)


@converter(aten.repeat_interleave.self_int)
def repeat_interleave(net: Network, input: Tensor, repeats: Size, dim: int | None, **_: Any) -> Tensor:
    """repeat_interleave.self_int(Tensor self, SymInt repeats, int? dim=None, *, SymInt? output_size=None) -> Tensor"""
    if dim is None or input.rank == 0:
        input, dim = net.flatten(input), 0
    dim %= input.rank
    before, after = input.shape[: dim + 1], input.shape[dim + 1 :]
    if input.rank == _MOST_DIMENSIONS:
        before, after = (volume(before),), (volume(after),)
    grown = net.expand(net.reshape(input, (*before, 1, *after)), (*before, repeats, *after))
    return net.reshape(grown, net.result.shape)


@converter(aten.roll.default)
def roll(net: Network, input: Tensor, shifts: Sequence[Size], dims: Sequence[int]) -> Tensor:
    """roll(Tensor self, SymInt[1] shifts, int[1] dims=[]) -> Tensor"""
    if not dims:
        return net.reshape(roll(net, net.flatten(input), shifts, [0]), input.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = input.shape[dim]
        if size == 0:
            continue
        # The last elements, as many as the shift, come first.
        moved = simplify(sympy.sympify(PythonMod(shift, size)))
        if moved != 0:
            parts = net.narrow(input, dim, size - moved, moved), net.narrow(input, dim, 0, size - moved)
            input = net.concat(parts, dim)
    return input


@converter(aten.flip.default)
def flip(net: Network, input: Tensor, dims: Sequence[int]) -> Tensor:
    """flip(Tensor self, int[] dims) -> Tensor"""
    return net.flip(input, dims) if input.rank else input
