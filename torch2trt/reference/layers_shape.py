"""Layers that move elements or tell of shapes: shuffle, slice, concatenation, padding, fill, constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch2trt.reference.readback import Node
from torch2trt.reference.registry import along, declared, layer, pairs, sizes


@layer("SHUFFLE")
def shuffle(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Transpose, reshape, transpose; in the shape 0 may copy a dimension and -1 is inferred."""
    api = node.api
    x = x.permute(list(api.first_transpose)[: x.dim()])
    if shape is not None or declared(api, "reshape_dims") is not None:
        wanted = sizes(api, "reshape_dims", shape)
        if api.zero_is_placeholder:
            wanted = [size or x.shape[axis] for axis, size in enumerate(wanted)]
        x = x.reshape(wanted)
    return x.permute(list(api.second_transpose)[: x.dim()])


@layer("SQUEEZE")
def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Removes dimensions of size one: those named, or all that are known to be so."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


@layer("UNSQUEEZE")
def unsqueeze(node: Node, x: Tensor, axes: Tensor) -> Tensor:
    """Inserts dimensions of size one; the axes count in the result."""
    rank = x.dim() + axes.numel()
    for axis in sorted(axis % rank for axis in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


@layer("CONCATENATION")
def concatenation(node: Node, *parts: Tensor) -> Tensor:
    """The parts one after the other along an axis."""
    return torch.cat(parts, node.api.axis)


@layer("PADDING")
def padding(node: Node, x: Tensor) -> Tensor:
    """Zeros around the two innermost dimensions; negative padding crops."""
    return F.pad(x, tuple(pairs(node.api.pre_padding_nd, node.api.post_padding_nd)))


@layer("SHAPE")
def shape(node: Node, x: Tensor) -> Tensor:
    """The sizes of x as a 1-D tensor."""
    return torch.tensor(x.shape, dtype=node.dtype(), device=x.device)


@layer("SLICE")
def slice_(
    node: Node,
    x: Tensor,
    start: Tensor | None = None,
    size: Tensor | None = None,
    stride: Tensor | None = None,
    fill: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Elements at start + i · stride for each i < shape; the mode says what is read from outside."""
    api = node.api
    starts, lengths, strides = (
        sizes(api, name, tensor) for name, tensor in (("start", start), ("shape", size), ("stride", stride))
    )
    # An older TensorRT knows no axes; unset, they are all of them.
    named = axes.tolist() if axes is not None else declared(api, "axes")
    dims = range(x.dim()) if named is None else [axis % x.dim() for axis in named]
    outside = torch.zeros((), dtype=torch.bool, device=x.device)
    for dim, first, length, step in zip(dims, starts, lengths, strides, strict=True):
        last = first + step * (length - 1)
        if length == 0 or (0 <= first < x.shape[dim] and 0 <= last < x.shape[dim]):
            x = _take(x, dim, first, length, step)
            continue
        places = first + step * torch.arange(length, device=x.device)
        if api.mode.name == "STRICT_BOUNDS":
            raise node.error(f"slices [{first}, {last}] of dimension {dim}, which has {x.shape[dim]} elements")
        if api.mode.name == "FILL":
            outside = outside | along((places < 0) | (places >= x.shape[dim]), dim, x.dim())
            if not x.shape[dim]:
                x = x.new_zeros([1 if d == dim else extent for d, extent in enumerate(x.shape)])
        x = x.index_select(dim, _inside(places, x.shape[dim], api.mode.name))
    if not outside.any():
        return x
    return torch.where(outside, x.new_zeros(()) if fill is None else fill, x)


def _take(x: Tensor, dim: int, first: int, length: int, step: int) -> Tensor:
    """Elements that all lie inside, as a view where torch can."""
    if length == 0:
        return x.narrow(dim, 0, 0)
    if step == 0:
        return x.narrow(dim, first, 1).expand([length if d == dim else -1 for d in range(x.dim())])
    if step > 0:
        return x.narrow(dim, first, step * (length - 1) + 1)[
            tuple(slice(None, None, step if d == dim else 1) for d in range(x.dim()))
        ]
    return x.index_select(dim, first + step * torch.arange(length, device=x.device))


def _inside(places: Tensor, size: int, mode: str) -> Tensor:
    """Where the places outside of [0, size) are read from instead; FILL reads anything there."""
    if mode == "WRAP":
        return places % size
    if mode == "REFLECT":
        period = max(2 * (size - 1), 1)
        places = places % period
        return torch.where(places < size, places, period - places)
    return places.clamp(0, size - 1)


# Made from nothing ----------------------------------------------------------------------------------------


@layer("CONSTANT")
def constant(node: Node) -> Tensor:
    """Values that the network holds."""
    return node.constant()


@layer("FILL")
def fill(node: Node, shape: Tensor | None = None, start: Tensor | None = None, delta: Tensor | None = None) -> Tensor:
    """``start + Σ delta[d] · i[d]``; the random kinds are refused."""
    api, dtype = node.api, node.dtype()
    if api.operation.name != "LINSPACE":
        raise node.error(f"{api.operation.name} draws other numbers in every run")
    device = next((given.device for given in (shape, start, delta) if given is not None), None)
    lengths = sizes(api, "shape", shape)
    y = torch.full([1] * len(lengths), api.alpha if start is None else start.item(), dtype=dtype, device=device)
    steps = torch.tensor([api.beta], dtype=dtype, device=device) if delta is None else delta.reshape(-1)
    if len(steps) != len(lengths):
        raise node.error(f"{len(steps)} steps for {len(lengths)} dimensions")
    for dim, length in enumerate(lengths):
        y = y + along(torch.arange(length, dtype=dtype, device=device) * steps[dim], dim, len(lengths))
    return y
