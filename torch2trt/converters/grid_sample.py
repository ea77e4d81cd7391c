"""Samples of images and volumes at the coordinates that a grid holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import sympy
import torch

from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.converters.sampling import CUBIC, LINEAR, NEAREST, clamp, items, joined, rows, sampled, taps, vector
from torch2trt.sizes import Size, TensorSpec, simplify, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

# In the order of torch's numbers.
_KERNELS = (LINEAR, NEAREST, CUBIC)
_LAYER_MODES = ("LINEAR", "NEAREST", "CUBIC")
_LAYER_PADDING = ("FILL", "CLAMP", "REFLECT")


@converter(
    *(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default), unsupported=only_floats
)
def grid_sampler(
    net: Network, input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """grid_sampler(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners)"""
    # 16 bits are too few for coordinates.
    image, grid = net.cast(input, torch.float32), net.cast(grid, torch.float32)
    if input.rank == 4 and net.flavour.has("grid_sample"):
        result = net.grid_sample(
            image,
            grid,
            mode=_LAYER_MODES[interpolation_mode],
            outside=_LAYER_PADDING[padding_mode],
            align_corners=align_corners,
        )
    else:
        result = _composed(net, image, grid, interpolation_mode, padding_mode, align_corners)
    return net.cast(result, input.dtype)


def _composed(net: Network, image: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    batch, channels, *sizes = image.shape
    _, *wanted, depth = grid.shape
    assert isinstance(depth, int)
    sizes = sizes[::-1]  # a grid has x first
    places = _in_elements(net, net.reshape(grid, (batch, volume(wanted), depth)), sizes, align_corners)
    bound = (None, partial(_clamped, net, sizes), partial(_reflected, net, sizes, align_corners))[padding]
    kernel = _KERNELS[mode]
    found = taps(net, places, sizes, kernel, bound)
    # Those of each dimension lie along an axis of their own: [N, K, K, P].
    count = len(kernel.offsets)
    axes = range(depth)[::-1]
    lanes = [
        found.along(net, axis, (batch, *(count if other == axis else 1 for other in axes), volume(wanted)))
        for axis in axes
    ]
    whole = joined(net, lanes, sizes[::-1])
    starts = items(net, batch, volume(sizes), depth + 2)
    result = sampled(net, rows(net, image), starts, whole, range(1, depth + 1))
    return net.reshape(net.transpose(result, 1, 2), (batch, channels, *wanted))


def _in_elements(net: Network, grid: Tensor, sizes: Sequence[Size], align_corners: bool) -> Tensor:
    """Coordinates from -1 to 1 as numbers of elements."""
    from_0_to_2 = net.binary("SUM", grid, 1.0)
    if align_corners:
        return net.elementwise("PROD", net.binary("PROD", from_0_to_2, 0.5), vector(net, [size - 1 for size in sizes]))
    return net.binary("PROD", net.binary("SUB", net.elementwise("PROD", from_0_to_2, vector(net, sizes)), 1.0), 0.5)


def _clamped(net: Network, sizes: Sequence[Size], places: Tensor) -> Tensor:
    return clamp(net, places, vector(net, [size - 1 for size in sizes]))


def _reflected(net: Network, sizes: Sequence[Size], align_corners: bool, places: Tensor) -> Tensor:
    """Places mirrored at the outermost elements, or at their outer edges, as often as it takes."""
    # Of a single element any period will do.
    spans = [simplify(sympy.Max(size - 1, 1)) if align_corners else size for size in sizes]
    edge = 0.0 if align_corners else -0.5
    period = vector(net, [2 * span for span in spans])
    away = net.unary("ABS", net.binary("SUB", places, edge))
    periods = net.unary("FLOOR", net.elementwise("DIV", away, period))
    along = net.elementwise("SUB", away, net.elementwise("PROD", periods, period))
    nearer = net.elementwise("MIN", along, net.elementwise("SUB", period, along))
    return _clamped(net, sizes, net.binary("SUM", nearer, edge))


def _grid_unsupported(theta: TensorSpec, results: Sequence[TensorSpec], **_: object) -> str | None:
    if not all(isinstance(size, int) for size in results[0].shape[1:]):
        return "a grid of dynamic sizes, beside the batch"
    return only_floats(theta=theta)


@converter(aten.affine_grid_generator.default, unsupported=_grid_unsupported)
def affine_grid_generator(net: Network, theta: Tensor, align_corners: bool, **_: object) -> Tensor:
    """affine_grid_generator(Tensor theta, SymInt[] size, bool align_corners) -> Tensor"""
    batch, *sizes, dims = net.result.shape
    matrix = net.cast(theta, torch.float32)

    def column(number: Size) -> Tensor:
        return net.reshape(net.narrow(matrix, 2, number, 1), (batch, *(1 for _ in sizes), dims))

    grid = column(dims)
    for axis, size in enumerate(sizes):
        assert isinstance(size, int)
        # From -1 to 1, or of a single element 0.
        places = torch.arange(1.0 - size, size, 2) / (max(size - 1, 1) if align_corners else size)
        along = net.constant(places.reshape([size if other == axis else 1 for other in range(len(sizes))] + [1]))
        # The innermost coordinate comes first.
        grid = net.elementwise("SUM", grid, net.elementwise("PROD", column(dims - 1 - axis), along))
    return net.cast(grid, theta.dtype)
