"""What is picked by its value: how many elements that are depends on data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Shape, Size, TensorSpec, volume
from torch2trt.trt.dims import broadcast
from torch2trt.trt.flavour import Flavour, who_has
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def no_selection(shape: Shape, flavour: Flavour) -> str | None:
    """Why what is True in a tensor of a shape cannot be found, or None."""
    if not flavour.has("non_zero"):
        return f"how many elements it selects depends on data, for which only {who_has('non_zero')} has a runner"
    return "selects from no elements" if volume(shape) == 0 else None


def selected_places(net: Network, mask: Tensor) -> Tensor:
    """The places at which a BOOL tensor is True, taken as one dimension: INT32 [count], in order."""
    if mask.rank == 1:
        return net.squeeze(net.non_zero(mask), 0)
    key = (selected_places, mask)
    if key not in net.shared:
        net.shared[key] = selected_places(net, net.flatten(mask))
    found = net.shared[key]
    assert isinstance(found, Tensor)
    return found


def is_true(net: Network, tensor: Tensor) -> Tensor:
    """Where a tensor is not zero, NaN among that."""
    if tensor.dtype == torch.bool:
        return tensor
    return net.unary("NOT", net.elementwise("EQUAL", tensor, net.tensor(0, tensor.dtype)))


# -- places ------------------------------------------------------------------------------------------------------------


def _nonzero_unsupported(input: TensorSpec, flavour: Flavour) -> str | None:
    if input.rank == 0:
        return "TensorRT has no tensor [n, 0], which the places of a scalar are"
    return no_selection(input.shape, flavour)


def _nonzero_at_most(input: TensorSpec) -> Size:
    return volume(input.shape)


@converter(aten.nonzero.default, unsupported=_nonzero_unsupported, at_most=_nonzero_at_most)
def nonzero(net: Network, input: Tensor) -> Tensor:
    """nonzero(Tensor self) -> Tensor"""
    mask = is_true(net, input)
    # A mask of one dimension is searched in one way.
    places = net.unsqueeze(selected_places(net, mask), 1) if mask.rank == 1 else net.permute(net.non_zero(mask), (1, 0))
    return net.cast(places, torch.int64)


def _static_unsupported(input: TensorSpec, size: Size, **_: int) -> str | None:
    if size == 0:
        return "no places are asked for"
    return "TensorRT has no tensor [n, 0], which the places of a scalar are" if input.rank == 0 else None


@converter(aten.nonzero_static.default, unsupported=_static_unsupported)
def nonzero_static(net: Network, input: Tensor, size: int, fill_value: int) -> Tensor:
    """nonzero_static(Tensor self, *, SymInt size, int fill_value=-1) -> Tensor"""
    if 0 in input.shape:
        return net.expand(net.tensor(fill_value, torch.int64), (size, input.rank))
    mask = net.cast(is_true(net, net.flatten(input)), torch.int32)
    counted = net.cumulative_sum(mask, 0)
    # Each one's number among them is where it goes; what is too much, or no such place, goes behind the last.
    places = net.select(net.cast(mask, torch.bool), net.binary("SUB", counted, 1), net.tensor(size, torch.int32))
    places = net.binary("MIN", places, size)
    (number,) = mask.shape
    behind = net.expand(net.tensor(-1, torch.int32), (size + 1,))
    found = net.scatter_elements(behind, places, net.iota(0, 1, number, torch.int32), 0)
    found = net.cast(net.narrow(found, 0, 0, size), torch.int64)
    axes: list[Tensor] = []
    rest = net.binary("MAX", found, 0)
    for extent in reversed(input.shape):
        extent_of = net.tensor(extent, torch.int64)
        quotient = net.elementwise("FLOOR_DIV", rest, extent_of)
        axes.insert(0, net.elementwise("SUB", rest, net.elementwise("PROD", quotient, extent_of)))
        rest = quotient
    there = net.unsqueeze(net.unary("NOT", net.binary("LESS", found, 0)), 1)
    joined = net.concat([net.unsqueeze(axis, 1) for axis in axes], 1)
    return net.select(there, joined, net.tensor(fill_value, torch.int64))


# -- elements ----------------------------------------------------------------------------------------------------------


def _masked_select_unsupported(input: TensorSpec, mask: TensorSpec, flavour: Flavour) -> str | None:
    return no_selection(broadcast(input.shape, mask.shape), flavour)


def _masked_select_at_most(input: TensorSpec, mask: TensorSpec) -> Size:
    return volume(broadcast(input.shape, mask.shape))


@converter(aten.masked_select.default, unsupported=_masked_select_unsupported, at_most=_masked_select_at_most)
def masked_select(net: Network, input: Tensor, mask: Tensor) -> Tensor:
    """masked_select(Tensor self, Tensor mask) -> Tensor"""
    shape = broadcast(input.shape, mask.shape)
    return net.gather(net.flatten(net.expand(input, shape)), selected_places(net, net.expand(mask, shape)), 0)


def without_masks(net: Network, input: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """The same reading by index with the dimensions of each mask as one, and its places there as the index."""
    sizes: list[Size] = []
    plain: list[Tensor | None] = []
    axis = 0
    for index in indices:
        covered = 1
        if index is not None and index.dtype == torch.bool:
            covered, index = index.rank, selected_places(net, index)
        sizes.append(volume(input.shape[axis : axis + covered]))
        plain.append(index)
        axis += covered
    return net.reshape(input, (*sizes, *input.shape[axis:])), plain
