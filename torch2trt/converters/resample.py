"""Interpolation to other sizes, and shuffles between channels and space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch2trt.converters.products import times_along
from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

# -- interpolation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Method:
    """One way to interpolate.

    Attributes:
        sampler: torch's operator over two dimensions.
        mode: what TensorRT's resize layer calls it; empty where it has nothing like it.
        coordinates: how the layer places elements, unless the corners are aligned.
        rounding: what is nearest.
    """

    sampler: Any
    mode: str = ""
    coordinates: str = "HALF_PIXEL"
    rounding: str = "FLOOR"

    def weights(self, size: int, wanted: int, scale: float | None, flags: Sequence[bool]) -> torch.Tensor:
        """[size, wanted]: what each new element along a dimension is made of; torch's operator on unit vectors."""
        # What is nearest is decided by float32, whatever the dtype.
        dtype = torch.float32 if self.mode == "NEAREST" else torch.float64
        units = torch.eye(size, dtype=dtype)[None, None]
        return self.sampler(units, [size, wanted], *flags, None, scale)[0, 0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Axis:
    """What happens to one dimension; the wanted size is None where it cannot be computed."""

    axis: int
    size: Size
    wanted: Size | None
    scale: float | None

    def suits_layer(self, method: _Method, align_corners: bool) -> bool:
        """Whether TensorRT's layer does what torch does."""
        if not method.mode or self.wanted is None:
            return False
        if method.mode == "NEAREST" and isinstance(self.size, int) and isinstance(self.wanted, int):
            # Elsewhere rounding errors decide between neighbours, and must be torch's own.
            return self.wanted % self.size == 0 and self.keeps_ratio
        return align_corners or self.keeps_ratio

    @property
    def keeps_ratio(self) -> bool:
        """The layer scales coordinates by the ratio of the sizes, torch by the factor, if it was given one."""
        return self.scale is None or self.wanted == _scaled(self.size, self.scale)


def _scaled(size: Size, scale: float) -> Size | float | None:
    if scale.is_integer():
        return size * int(scale)
    return size * scale if isinstance(size, int) else None


def _axes(input: TensorSpec | Tensor, arguments: dict[str, Any]) -> list[_Axis]:
    """The spatial dimensions, from the arguments of either form of the operator."""
    sizes = input.shape[2:]
    scales = arguments.get("scale_factors") or [arguments[name] for name in arguments if name.startswith("scales")]
    scales = scales or [None] * len(sizes)
    wanted = arguments["output_size"]
    if wanted is None:
        exact = [_scaled(size, scale) for size, scale in zip(sizes, scales, strict=True)]
        wanted = [math.floor(size) if isinstance(size, float) else size for size in exact]
    return [_Axis(axis, *rest) for axis, *rest in zip(range(2, 2 + len(sizes)), sizes, wanted, scales, strict=True)]


def _flags(arguments: dict[str, Any]) -> list[bool]:
    return [arguments["align_corners"]] if "align_corners" in arguments else []


def _interpolation(method: _Method) -> tuple[Callable[..., Tensor], Callable[..., str | None]]:
    def interpolate(net: Network, input: Tensor, **arguments: Any) -> Tensor:
        """upsample_bilinear2d.vec(Tensor input, SymInt[]? output_size, bool align_corners, ...) -> Tensor"""
        flags = _flags(arguments)
        axes, shape = _axes(input, arguments), list(input.shape)
        by_layer = [axis for axis in axes if axis.suits_layer(method, any(flags))]
        for axis in by_layer:
            shape[axis.axis] = net.result.shape[axis.axis]
        coordinates = "ALIGN_CORNERS" if any(flags) else method.coordinates
        if by_layer:
            input = net.resize(input, shape, mode=method.mode, coordinates=coordinates, rounding=method.rounding)
        for axis in axes:
            if axis not in by_layer:
                assert isinstance(axis.size, int)
                assert isinstance(axis.wanted, int)
                weights = method.weights(axis.size, axis.wanted, axis.scale, flags)
                if method.mode == "NEAREST":
                    input = net.gather(input, net.constant(weights.argmax(0).int()), axis.axis)
                else:
                    input = times_along(net, input, weights, axis.axis)
        return input

    def unsupported(input: TensorSpec, **arguments: Any) -> str | None:
        for axis in _axes(input, arguments):
            static = isinstance(axis.size, int) and isinstance(axis.wanted, int)
            if not static and not axis.suits_layer(method, any(_flags(arguments))):
                return f"dimension {axis.axis} is dynamic and " + (
                    f"scaled by {axis.scale}, which is no whole number" if method.mode else "smoothed (antialias)"
                )
        return only_floats(input=input)

    return interpolate, unsupported


_NEAREST = _Method(aten.upsample_nearest2d.default, "NEAREST", "ASYMMETRIC")
_EXACT = _Method(aten._upsample_nearest_exact2d.default, "NEAREST", "HALF_PIXEL", "HALF_UP")
_LINEAR = _Method(aten.upsample_bilinear2d.default, "LINEAR")

for _method, *_packets in (
    (_NEAREST, aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    (_EXACT, aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d),
    (_LINEAR, aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d),
    (_Method(aten.upsample_bicubic2d.default, "CUBIC"), aten.upsample_bicubic2d),
    (_Method(aten._upsample_bilinear2d_aa.default), aten._upsample_bilinear2d_aa),
    (_Method(aten._upsample_bicubic2d_aa.default), aten._upsample_bicubic2d_aa),
):
    _interpolate, _unsupported = _interpolation(_method)
    _targets = [overload for packet in _packets for overload in (packet.default, packet.vec)]
    converter(*_targets, unsupported=_unsupported)(_interpolate)


# -- shuffles ----------------------------------------------------------------------------------------------------------


@converter(aten.pixel_shuffle.default)
def pixel_shuffle(net: Network, input: Tensor, upscale_factor: int) -> Tensor:
    """pixel_shuffle(Tensor self, int upscale_factor) -> Tensor"""
    *outer, _, height, width = input.shape
    channels = net.result.shape[-3]
    rank = len(outer)
    apart = net.reshape(input, (*outer, channels, upscale_factor, upscale_factor, height, width))
    moved = net.permute(apart, [*range(rank), *(rank + axis for axis in (0, 3, 1, 4, 2))])
    return net.reshape(moved, net.result.shape)


@converter(aten.pixel_unshuffle.default)
def pixel_unshuffle(net: Network, input: Tensor, downscale_factor: int) -> Tensor:
    """pixel_unshuffle(Tensor self, int downscale_factor) -> Tensor"""
    *outer, channels, _, _ = input.shape
    *_, height, width = net.result.shape
    rank = len(outer)
    apart = net.reshape(input, (*outer, channels, height, downscale_factor, width, downscale_factor))
    moved = net.permute(apart, [*range(rank), *(rank + axis for axis in (0, 2, 4, 1, 3))])
    return net.reshape(moved, net.result.shape)


@converter(aten.channel_shuffle.default)
def channel_shuffle(net: Network, input: Tensor, groups: int) -> Tensor:
    """channel_shuffle(Tensor self, SymInt groups) -> Tensor"""
    batch, channels, *spatial = input.shape
    apart = net.reshape(input, (batch, groups, channels // groups, *spatial))
    return net.reshape(net.transpose(apart, 1, 2), input.shape)
