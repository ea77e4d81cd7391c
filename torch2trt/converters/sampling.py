"""Values between the elements of a tensor: the elements around a place, its taps, and what each of them counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from torch2trt.sizes import Size, volume
from torch2trt.trt.dims import broadcast
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

Bound = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kernel:
    """Which elements count for a place, and how much.

    Attributes:
        rounding: the ``UnaryOperation`` that finds the element that the others are counted from.
        offsets: where the taps are, from there.
        weights: polynomials of a tap's distance: for each power of it, the highest first, one factor a tap.
        bounds_taps: whether what lies outside is replaced tap by tap; otherwise the place itself is moved inside.
    """

    rounding: str
    offsets: Sequence[int]
    weights: Sequence[Sequence[float]]
    bounds_taps: bool = False


_A = -0.75  # torch's parameter of cubic convolution
NEAREST = Kernel("ROUND", (0,), ((1,),))
LINEAR = Kernel("FLOOR", (0, 1), ((-1, -1), (1, 1)))
CUBIC = Kernel(
    "FLOOR",
    (-1, 0, 1, 2),
    ((_A, _A + 2, _A + 2, _A), (-5 * _A, -_A - 3, -_A - 3, -5 * _A), (8 * _A, 0, 0, 8 * _A), (-4 * _A, 1, 1, -4 * _A)),
    bounds_taps=True,
)


@dataclass(frozen=True)
class Taps:
    """The taps of places along one dimension, or along several ones where the last dimension tells these apart.

    Attributes:
        indices: INT32 [*, K, P, D], inside the tensor.
        weights: float32 [*, K, P, D], 0 for taps outside.
    """

    indices: Tensor
    weights: Tensor

    def along(self, net: Network, axis: int, shape: Sequence[Size]) -> Taps:
        """Those of one dimension, in a shape."""

        def picked(tensor: Tensor) -> Tensor:
            return net.reshape(net.narrow(tensor, -1, axis, 1), shape)

        return Taps(picked(self.indices), picked(self.weights))


def vector(net: Network, sizes: Sequence[Size]) -> Tensor:
    """Sizes as float32 [D]."""
    return net.cast(net.shape_tensor(sizes), torch.float32)


def clamp(net: Network, places: Tensor, last: Tensor) -> Tensor:
    """Places moved to between 0 and the last element's."""
    return net.elementwise("MIN", net.binary("MAX", places, 0.0), last)


def taps(net: Network, places: Tensor, sizes: Sequence[Size], kernel: Kernel, bound: Bound | None = None) -> Taps:
    """The taps of places.

    Args:
        places: float32 [*, P, D], counted in elements.
        sizes: of the D dimensions.
        bound: brings what lies outside back inside; without it, that counts nothing.
    """
    if bound is not None and not kernel.bounds_taps:
        places = bound(places)

    def column(values: Sequence[float]) -> Tensor:
        return net.constant(torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1))

    places = net.unsqueeze(places, -3)
    at = net.elementwise("SUM", net.unary(kernel.rounding, places), column(kernel.offsets))
    highest, *lower = kernel.weights
    weights = net.expand(column(highest), at.shape)
    if lower:
        distance = net.unary("ABS", net.elementwise("SUB", places, at))
        for factors in lower:
            weights = net.elementwise("SUM", net.elementwise("PROD", weights, distance), column(factors))
    if bound is not None and kernel.bounds_taps:
        at = bound(at)
    # Also false where there is no number to compare.
    inside = net.elementwise("EQUAL", at, clamp(net, at, vector(net, [size - 1 for size in sizes])))
    zero = net.tensor(0.0, torch.float32)
    return Taps(net.cast(net.select(inside, at, zero), torch.int32), net.select(inside, weights, zero))


def joined(net: Network, lanes: Sequence[Taps], sizes: Sequence[Size]) -> Taps:
    """Taps along several dimensions, whose shapes broadcast, as taps along all of them as one."""
    whole, *others = lanes
    for lane, size in zip(others, sizes[1:], strict=True):
        indices = net.elementwise("SUM", net.binary("PROD", whole.indices, net.tensor(size, torch.int32)), lane.indices)
        whole = Taps(indices, net.elementwise("PROD", whole.weights, lane.weights))
    return whole


def rows(net: Network, input: Tensor) -> Tensor:
    """[N, C, *spatial] as [N * volume(spatial), C]: an element of all channels is one slice to gather."""
    batch, channels, *spatial = input.shape
    last = net.permute(input, [0, *range(2, input.rank), 1])
    return net.reshape(last, (batch * volume(spatial), channels))


def items(net: Network, count: Size, size: Size, rank: int) -> Tensor:
    """Where each of several items of a size begins, INT32 [count, 1, …]."""
    starts = net.binary("PROD", net.iota(0, 1, count, torch.int32), net.tensor(size, torch.int32))
    return net.reshape(starts, (count, *(1,) * (rank - 1)))


def sampled(net: Network, table: Tensor, starts: Tensor, places: Taps, axes: Sequence[int]) -> Tensor:
    """Weighted sums of slices of a table.

    Args:
        table: [rows, C].
        starts: INT32, the row that the indices are counted from; broadcasts to the taps.
        places: of any shape.
        axes: the dimensions of the taps to sum over.

    Returns:
        [*others, C].
    """
    shape = broadcast(places.indices.shape, starts.shape)
    picked = net.gather(table, net.elementwise("SUM", places.indices, starts), 0)
    weights = net.cast(places.weights, table.dtype)
    weights = net.reshape(weights, (*(1,) * (len(shape) - weights.rank), *weights.shape, 1))
    return net.reduce("SUM", net.elementwise("PROD", picked, weights), axes, keep_dims=False)
