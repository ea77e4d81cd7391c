"""What is picked by its value: how many elements that are depends on data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Shape, Size, TensorSpec, volume
from torch2trt.trt.dims import broadcast
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def no_selection(shape: Shape, flavour: Flavour) -> str | None:
    """Why what is True in a tensor of a shape cannot be found, or None."""
    if not flavour.has("non_zero"):
        return "how many elements it selects depends on data, and this TensorRT has no runner for such layers"
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
