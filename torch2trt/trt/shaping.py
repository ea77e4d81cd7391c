"""Layers that move data: reshape, permute, slice, expand, concatenate, gather, scatter, pad."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from torch2trt.sizes import Size, largest, symbols, volume
from torch2trt.trt.core import BYTES, HALF_DTYPES, NetworkCore
from torch2trt.trt.dims import broadcast
from torch2trt.trt.tensor import Tensor

Method = TypeVar("Method", bound=Callable[..., Tensor])


def is_static(shape: Sequence[Size]) -> bool:
    """Whether every size is a plain int."""
    return all(isinstance(size, int) for size in shape)


def bytes_as_half(method: Method) -> Method:
    """Let a layer move bytes, which TensorRT only casts, or takes for quantized numbers: FP16 holds their values."""

    @functools.wraps(method)
    def wrapped(net: NetworkCore, *args: Any, **kwargs: Any) -> Tensor:
        def is_bytes(value: Any) -> bool:
            return isinstance(value, Tensor) and value.dtype in BYTES

        given = [value.dtype for value in pytree.tree_leaves((args, kwargs)) if is_bytes(value)]
        if given:
            args, kwargs = pytree.tree_map_only(is_bytes, lambda value: net.cast(value, torch.float16), (args, kwargs))
            moved = method(net, *args, **kwargs)
            return Tensor(net, None, moved.shape, given[0], floats=moved)
        return method(net, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


class Shaping(NetworkCore):
    """The shaping layers of a network."""

    # -- sizes as tensors ---------------------------------------------------------------------------------------------

    def size_of(self, tensor: Tensor, axis: int) -> Tensor:
        """One dimension of a tensor as an INT64 tensor of shape [1]."""
        if tensor.dtype in BYTES:
            tensor = self.cast(tensor, torch.float16)
        layer = self.add("add_shape", tensor.itensor)
        shape = self.output_of(layer, (tensor.rank,))
        return self.slice(shape, [axis % tensor.rank], [1], [1])

    def shape_tensor(self, shape: Sequence[Size]) -> Tensor:
        """A shape as an INT64 tensor of shape [rank]."""
        if is_static(shape):
            return self.constant(torch.tensor([int(size) for size in shape], dtype=torch.int64))
        parts: list[Tensor] = []
        run: list[int] = []
        for size in shape:
            if isinstance(size, int):
                run.append(size)
                continue
            if run:
                parts.append(self.constant(torch.tensor(run)))
                run = []
            parts.append(self.dims.tensor(size))
        if run:
            parts.append(self.constant(torch.tensor(run)))
        return self.concat(parts, 0)

    # -- shuffles -----------------------------------------------------------------------------------------------------

    @bytes_as_half
    def reshape(self, tensor: Tensor, shape: Sequence[Size]) -> Tensor:
        """The same elements, in order, in another shape."""
        shape = tuple(shape)
        if tuple(tensor.shape) == shape:
            return tensor
        if tensor.value is not None and is_static(shape):
            return Tensor(self, None, shape, tensor.dtype, tensor.value.reshape(shape), tensor.label)
        layer = self.add("add_shuffle", tensor.itensor)
        dynamic = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        copied = [axis for axis in dynamic if axis < tensor.rank and tensor.shape[axis] == shape[axis]]
        rest = [axis for axis in dynamic if axis not in copied]
        if len(dynamic) == 1 and 0 not in shape:
            layer.zero_is_placeholder = False
            layer.reshape_dims = [size if isinstance(size, int) else -1 for size in shape]
        elif len(rest) <= 1 and 0 not in shape and not (rest and self.may_be_empty([shape[axis] for axis in copied])):
            # 0 copies the size of the same axis of the input, -1 is what remains.
            layer.reshape_dims = [
                size if isinstance(size, int) else 0 if axis in copied else -1 for axis, size in enumerate(shape)
            ]
        elif is_static(shape):
            layer.zero_is_placeholder = False
            layer.reshape_dims = list(shape)
        else:
            layer.zero_is_placeholder = False
            layer.set_input(1, self.shape_tensor(shape).itensor)
        return self.output_of(layer, shape)

    def may_be_empty(self, shape: Sequence[Size]) -> bool:
        """Whether a size depends on data, which may be 0."""
        return any(name in self.ranges and self.ranges[name].min == 0 for name in symbols(shape))

    def flatten(self, tensor: Tensor) -> Tensor:
        """All elements in one dimension."""
        return self.reshape(tensor, (volume(tensor.shape),))

    @bytes_as_half
    def permute(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """Dimensions in another order."""
        axes = [axis % tensor.rank for axis in axes]
        if axes == list(range(tensor.rank)):
            return tensor
        layer = self.add("add_shuffle", tensor.itensor)
        layer.first_transpose = self.trt.Permutation(axes)
        return self.output_of(layer, [tensor.shape[axis] for axis in axes])

    def transpose(self, tensor: Tensor, first: int, second: int) -> Tensor:
        """Two dimensions swapped."""
        axes = list(range(tensor.rank))
        axes[first], axes[second] = axes[second], axes[first]
        return self.permute(tensor, axes)

    def unsqueeze(self, tensor: Tensor, axis: int) -> Tensor:
        """A dimension of size 1 inserted; negative axes count in the result."""
        axis %= tensor.rank + 1
        return self.reshape(tensor, (*tensor.shape[:axis], 1, *tensor.shape[axis:]))

    def squeeze(self, tensor: Tensor, axis: int) -> Tensor:
        """A dimension of size 1 removed."""
        axis %= tensor.rank
        return self.reshape(tensor, (*tensor.shape[:axis], *tensor.shape[axis + 1 :]))

    def to_rank(self, tensor: Tensor, rank: int) -> Tensor:
        """Leading dimensions of size 1 added up to a rank."""
        return self.reshape(tensor, (*(1,) * (rank - tensor.rank), *tensor.shape))

    # -- slices -------------------------------------------------------------------------------------------------------

    @bytes_as_half
    def slice(
        self,
        tensor: Tensor,
        start: Sequence[Size],
        sizes: Sequence[Size],
        stride: Sequence[int],
        *,
        mode: str = "STRICT_BOUNDS",
        fill: Tensor | None = None,
    ) -> Tensor:
        """``tensor[start : start + sizes * stride : stride]`` in every dimension; stride 0 repeats, negative flips.

        Args:
            mode: a ``SampleMode``, which says what is read from outside the tensor.
            fill: what FILL reads there, a scalar of the tensor's dtype.
        """
        sizes = tuple(sizes)
        fixed = [[size if isinstance(size, int) else 0 for size in values] for values in (start, sizes)]
        layer = self.add("add_slice", tensor.itensor, *fixed, list(stride))
        layer.mode = getattr(self.trt.SampleMode, mode)
        if not is_static(start):
            layer.set_input(1, self.shape_tensor(start).itensor)
        if not is_static(sizes):
            layer.set_input(2, self.shape_tensor(sizes).itensor)
        if fill is not None:
            layer.set_input(4, fill.itensor)
        return self.output_of(layer, sizes)

    def narrow(self, tensor: Tensor, axis: int, start: Size, size: Size, step: int = 1) -> Tensor:
        """A range of one dimension."""
        axis %= tensor.rank
        if start == 0 and step == 1 and size == tensor.shape[axis]:
            return tensor
        starts: list[Size] = [0] * tensor.rank
        sizes = list(tensor.shape)
        strides = [1] * tensor.rank
        starts[axis], sizes[axis], strides[axis] = start, size, step
        return self.slice(tensor, starts, sizes, strides)

    def expand(self, tensor: Tensor, shape: Sequence[Size]) -> Tensor:
        """Dimensions of size 1 repeated up to a shape, as broadcasting does."""
        tensor = self.to_rank(tensor, len(shape))
        if tuple(tensor.shape) == tuple(shape):
            return tensor
        strides = [0 if have == 1 and want != 1 else 1 for have, want in zip(tensor.shape, shape, strict=True)]
        expanded = self.slice(tensor, [0] * len(shape), shape, strides)
        expanded.unexpanded = tensor.unexpanded or tensor
        return expanded

    def flip(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """Dimensions in reverse order."""
        # Without elements a dimension has no last one to start at.
        axes = [axis % tensor.rank for axis in axes if tensor.shape[axis] != 0]
        start = [size - 1 if axis in axes else 0 for axis, size in enumerate(tensor.shape)]
        stride = [-1 if axis in axes else 1 for axis in range(tensor.rank)]
        return self.slice(tensor, start, tensor.shape, stride)

    def pad(
        self,
        tensor: Tensor,
        before: Sequence[Size],
        after: Sequence[Size],
        *,
        mode: str = "FILL",
        value: float = 0,
    ) -> Tensor:
        """Grow (or, where negative, crop) every dimension.

        Args:
            before, after: elements to add in each dimension.
            mode: a ``SampleMode``: FILL with ``value``, CLAMP to the edge, REFLECT, WRAP.
        """
        start = [-low for low in before]
        sizes = [size + low + high for size, low, high in zip(tensor.shape, before, after, strict=True)]
        fill = self.constant(torch.tensor(value, dtype=tensor.dtype)) if mode == "FILL" else None
        return self.slice(tensor, start, sizes, [1] * tensor.rank, mode=mode, fill=fill)

    # -- what is found by its value -----------------------------------------------------------------------------------

    def non_zero(self, mask: Tensor) -> Tensor:
        """Where a BOOL tensor is True, in order: INT32 [rank, count]. The same mask is searched once."""
        key = ("non_zero", mask)
        if key not in self.shared:
            self.shared[key] = self.output_of(self.add("add_non_zero", mask.itensor))
        found = self.shared[key]
        assert isinstance(found, Tensor)
        return found

    # -- joins and look-ups -------------------------------------------------------------------------------------------

    @bytes_as_half
    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined along a dimension."""
        if len(tensors) == 1:
            return tensors[0]
        axis %= tensors[0].rank
        layer = self.add("add_concatenation", [tensor.itensor for tensor in tensors])
        layer.axis = axis
        shape = list(tensors[0].shape)
        shape[axis] = sum((tensor.shape[axis] for tensor in tensors), 0)
        return self.output_of(layer, shape)

    @bytes_as_half
    def gather(self, tensor: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Whole slices along a dimension: the indices' shape takes the dimension's place."""
        axis %= tensor.rank
        fewer = largest(volume(indices.shape) - tensor.shape[axis], self.ranges) < 0
        if tensor.dtype in HALF_DTYPES and not fewer and not self.flavour.has("repeating_gathers_of_halves"):
            return self.cast(self.gather(self.cast(tensor, torch.float32), indices, axis), tensor.dtype)
        layer = self.add("add_gather", tensor.itensor, indices.itensor, axis)
        return self.output_of(layer, (*tensor.shape[:axis], *indices.shape, *tensor.shape[axis + 1 :]))

    @bytes_as_half
    def gather_elements(self, tensor: Tensor, indices: Tensor, axis: int) -> Tensor:
        """One element per index, as ``torch.gather``."""
        layer = self.add("add_gather_v2", tensor.itensor, indices.itensor, self.trt.GatherMode.ELEMENT)
        layer.axis = axis % tensor.rank
        return self.output_of(layer, indices.shape)

    @bytes_as_half
    def gather_nd(self, tensor: Tensor, indices: Tensor) -> Tensor:
        """Slices at index tuples: the last dimension of ``indices`` addresses the leading ones of ``tensor``."""
        layer = self.add("add_gather_v2", tensor.itensor, indices.itensor, self.trt.GatherMode.ND)
        depth = indices.shape[-1]
        assert isinstance(depth, int)
        return self.output_of(layer, (*indices.shape[:-1], *tensor.shape[depth:]))

    @bytes_as_half
    def scatter_elements(self, tensor: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
        """One element written per index, as ``torch.scatter``."""
        axis %= tensor.rank
        size = tensor.shape[axis]
        tensor = self._with_room(tensor, indices.shape[axis], axis)
        layer = self.add("add_scatter", tensor.itensor, indices.itensor, updates.itensor, self.trt.ScatterMode.ELEMENT)
        layer.axis = axis
        return self.narrow(self.output_of(layer, tensor.shape), axis, 0, size)

    @bytes_as_half
    def scatter_nd(self, tensor: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        """Slices [updates, ...] of [rows, ...] written at the places [updates, 1]."""
        rows = tensor.shape[0]
        tensor = self._with_room(tensor, indices.shape[0], 0)
        layer = self.add("add_scatter", tensor.itensor, indices.itensor, updates.itensor, self.trt.ScatterMode.ND)
        return self.narrow(self.output_of(layer, tensor.shape), 0, 0, rows)

    def _with_room(self, tensor: Tensor, count: Size, axis: int) -> Tensor:
        """The tensor, longer where more may be written along a dimension than it has.

        TensorRT refuses that of elements, and 10.6 leaves out most slices where their number is dynamic.
        """
        size = tensor.shape[axis]
        if size == count or (isinstance(size, int) and isinstance(count, int) and count < size):
            return tensor
        shape = [count if at == axis else other for at, other in enumerate(tensor.shape)]
        return self.concat([tensor, self.expand(self.constant(torch.zeros((), dtype=tensor.dtype)), shape)], axis)

    @bytes_as_half
    def select(self, condition: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
        """``then`` where the condition holds, else ``otherwise``; all three broadcast."""
        shape = broadcast(condition.shape, then.shape, otherwise.shape)
        operands = [self.to_rank(tensor, len(shape)).itensor for tensor in (condition, then, otherwise)]
        return self.output_of(self.add("add_select", *operands), shape)
