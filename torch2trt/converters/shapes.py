"""Operators that only move data: views, slices, joins, repetitions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def result_shape(net: Network) -> tuple[Size, ...]:
    """The shape that the graph knows for the node being lowered."""
    assert net.result is not None
    return net.result.shape


@converter(aten.reshape.default, aten.view.default)
def reshape(net: Network, input: Tensor, **_: Sequence[Size]) -> Tensor:
    """reshape(Tensor(a) self, SymInt[] shape) -> Tensor(a)"""
    return net.reshape(input, result_shape(net))


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


@converter(
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def squeeze(net: Network, input: Tensor, **_: object) -> Tensor:
    """unsqueeze(Tensor(a) self, int dim) -> Tensor(a)"""
    return net.reshape(input, result_shape(net))


def _expand_unsupported(input: TensorSpec, **_: object) -> str | None:
    return "TensorRT slices no uint8 tensors" if input.dtype == torch.uint8 else None


@converter(aten.expand.default, unsupported=_expand_unsupported)
def expand(net: Network, input: Tensor, **_: object) -> Tensor:
    """expand(Tensor(a) self, SymInt[] size, *, bool implicit=False) -> Tensor(a)"""
    return net.expand(input, result_shape(net))


def _slice_unsupported(input: TensorSpec, dim: int, start: Size | None, **_: object) -> str | None:
    if input.dtype == torch.uint8:
        return "TensorRT slices no uint8 tensors"
    size = input.shape[dim]
    if isinstance(start, int) and start < 0 and not isinstance(size, int) and -start > 2**31:
        return "the start of the slice is unknown"
    return None


@converter(aten.slice.Tensor, unsupported=_slice_unsupported)
def slice(net: Network, input: Tensor, dim: int, start: Size | None, end: Size | None, step: int) -> Tensor:
    """slice.Tensor(Tensor(a) self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor(a)"""
    return net.narrow(input, dim, _start(start, input.shape[dim]), result_shape(net)[dim], step)


def _start(start: Size | None, size: Size) -> Size:
    """Where a slice begins, as torch clamps it."""
    if start is None:
        return 0
    if isinstance(start, int) and isinstance(size, int):
        return min(max(start + size if start < 0 else start, 0), size)
    if isinstance(start, int) and start < 0:
        return size + start
    return start


@converter(aten.select.int)
def select(net: Network, input: Tensor, dim: int, index: Size) -> Tensor:
    """select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)"""
    start = index + input.shape[dim] if isinstance(index, int) and index < 0 else index
    return net.squeeze(net.narrow(input, dim, start, 1), dim)


@converter(aten.cat.default)
def cat(net: Network, tensors: Sequence[Tensor], dim: int) -> Tensor:
    """cat(Tensor[] tensors, int dim=0) -> Tensor"""
    # torch lets an empty vector join anything.
    joined = [tensor for tensor in net.promote(*tensors) if tensor.shape != (0,)] or list(tensors[:1])
    return net.concat([tensor for tensor in joined if tensor.shape[dim] != 0] or joined[:1], dim)


@converter(aten.stack.default)
def stack(net: Network, tensors: Sequence[Tensor], dim: int) -> Tensor:
    """stack(Tensor[] tensors, int dim=0) -> Tensor"""
    dim %= tensors[0].rank + 1
    return net.concat([net.unsqueeze(tensor, dim) for tensor in net.promote(*tensors)], dim)


def _pieces(net: Network, input: Tensor, sizes: Sequence[Size], dim: int) -> tuple[Tensor, ...]:
    start: Size = 0
    pieces: list[Tensor] = []
    for size in sizes:
        pieces.append(net.narrow(input, dim, start, size))
        start = start + size
    return tuple(pieces)


def _split_unsupported(input: TensorSpec, dim: int, **_: object) -> str | None:
    return None if isinstance(input.shape[dim], int) else "splits a dynamic dimension into equal parts"


@converter(aten.split_with_sizes.default)
def split_with_sizes(net: Network, input: Tensor, split_sizes: Sequence[Size], dim: int) -> tuple[Tensor, ...]:
    """split_with_sizes(Tensor(a -> *) self, SymInt[] split_sizes, int dim=0) -> Tensor(a)[]"""
    return _pieces(net, input, split_sizes, dim)


@converter(aten.split.Tensor, unsupported=_split_unsupported)
def split(net: Network, input: Tensor, split_size: int, dim: int) -> tuple[Tensor, ...]:
    """split.Tensor(Tensor(a -> *) self, SymInt split_size, int dim=0) -> Tensor(a)[]"""
    total = input.shape[dim]
    assert isinstance(total, int)
    sizes = [min(split_size, total - start) for start in range(0, total, split_size)]
    return _pieces(net, input, sizes, dim)


@converter(aten.chunk.default, unsupported=_split_unsupported)
def chunk(net: Network, input: Tensor, chunks: int, dim: int) -> tuple[Tensor, ...]:
    """chunk(Tensor(a -> *) self, int chunks, int dim=0) -> Tensor(a)[]"""
    total = input.shape[dim]
    assert isinstance(total, int)
    return split(net, input, -(-total // chunks), dim)


@converter(aten.unbind.int, unsupported=_split_unsupported)
def unbind(net: Network, input: Tensor, dim: int) -> tuple[Tensor, ...]:
    """unbind.int(Tensor(a -> *) self, int dim=0) -> Tensor(a)[]"""
    count = input.shape[dim]
    assert isinstance(count, int)
    return tuple(net.squeeze(net.narrow(input, dim, index, 1), dim) for index in range(count))


@converter(aten.roll.default)
def roll(net: Network, input: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Tensor:
    """roll(Tensor self, SymInt[1] shifts, int[1] dims=[]) -> Tensor"""
    if not dims:
        flat = net.reshape(input, (_volume(input.shape),))
        return net.reshape(roll(net, flat, shifts, [0]), input.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = input.shape[dim]
        if isinstance(size, int):
            shift %= max(size, 1)
        if shift == 0:
            continue
        cut = size - shift if shift > 0 else -shift
        input = net.concat(
            [net.narrow(input, dim, cut, size - cut), net.narrow(input, dim, 0, cut)],
            dim,
        )
    return input


def _volume(shape: Sequence[Size]) -> Size:
    volume: Size = 1
    for size in shape:
        volume = volume * size
    return volume


@converter(aten.flip.default)
def flip(net: Network, input: Tensor, dims: Sequence[int]) -> Tensor:
    """flip(Tensor self, int[] dims) -> Tensor"""
    return net.flip(input, dims) if input.rank else input


@converter(aten.repeat.default, aten.tile.default)
def repeat(net: Network, input: Tensor, **arguments: Sequence[Size]) -> Tensor:
    """repeat(Tensor self, SymInt[] repeats) -> Tensor"""
    (repeats,) = arguments.values()
    rank = max(len(repeats), input.rank)
    counts = [1] * (rank - len(repeats)) + list(repeats)
    input = net.to_rank(input, rank)
    # [a, b] → [1, a, 1, b] → [m, a, n, b] → [m * a, n * b]
    apart = [size for pair in zip([1] * rank, input.shape, strict=True) for size in pair]
    grown = [size for pair in zip(counts, input.shape, strict=True) for size in pair]
    return net.reshape(net.expand(net.reshape(input, apart), grown), result_shape(net))
