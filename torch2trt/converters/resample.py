"""Interpolation to other sizes, and shuffles between channels and space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._sympy.functions import FloorDiv

from torch2trt.converters.products import times_along
from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.converters.sampling import CUBIC, LINEAR, Kernel, clamp, taps, vector
from torch2trt.sizes import Size, TensorSpec, simplify
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
        kernel: which elements each new one is made of.
        reach: up to how many old or new elements away, whichever are larger, antialiasing looks; 0 without it.
    """

    sampler: Any
    mode: str = ""
    coordinates: str = "HALF_PIXEL"
    rounding: str = "FLOOR"
    kernel: Kernel = LINEAR
    reach: int = 0

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
        if not method.mode:
            return False
        if method.mode == "NEAREST":
            # Elsewhere rounding errors decide between neighbours, and must be torch's own.
            return self.wanted is not None and self.wanted % self.size == 0 and self.keeps_ratio
        return align_corners or self.keeps_ratio

    @property
    def is_static(self) -> bool:
        """Whether both sizes are known."""
        return isinstance(self.size, int) and isinstance(self.wanted, int)

    @property
    def keeps_ratio(self) -> bool:
        """The layer scales coordinates by the ratio of the sizes, torch by the factor, if it was given one."""
        if self.scale is None or self.wanted is None:
            return self.scale is None
        numerator, denominator = self.scale.as_integer_ratio()
        return bool(self.wanted * denominator == self.size * numerator)

    def ratio(self, net: Network) -> Tensor:
        """How many old elements a new one stands for, a float32 scalar."""
        if self.scale is not None:
            return net.tensor(1 / self.scale, torch.float32)
        return self.ratio_of_sizes(net)

    def ratio_of_sizes(self, net: Network) -> Tensor:
        """The old size divided by the new one, a float32 scalar."""
        assert self.wanted is not None
        old, new = (net.tensor(size, torch.float32) for size in (self.size, self.wanted))
        return net.elementwise("DIV", old, new)

    def centres(self, net: Network, offset: float) -> Tensor:
        """Where the new elements are among the old ones, float32 [wanted]."""
        assert self.wanted is not None
        return net.elementwise("PROD", net.iota(offset, 1, self.wanted, torch.float32), self.ratio(net))

    def starts(self, net: Network) -> Tensor:
        """Where the new elements begin among the old ones, float32 [wanted]."""
        assert self.wanted is not None
        ratio, of_sizes = self.ratio(net), self.ratio_of_sizes(net)
        for exact in (1.0, 0.5):
            # Whatever the factor: at these ratios torch counts in whole numbers.
            reached = net.elementwise("EQUAL", of_sizes, net.tensor(exact, torch.float32))
            ratio = net.select(reached, of_sizes, ratio)
        return net.elementwise("PROD", net.iota(0, 1, self.wanted, torch.float32), ratio)


def _scaled(size: Size, scale: float) -> Size | None:
    """The size times a factor, rounded down; None where floating point would have to compute it."""
    if isinstance(size, int):
        return math.floor(size * scale)
    numerator, denominator = scale.as_integer_ratio()
    return simplify(FloorDiv(numerator * size, denominator)) if denominator <= 64 else None


def _axes(input: TensorSpec | Tensor, arguments: dict[str, Any]) -> list[_Axis]:
    """The spatial dimensions, from the arguments of either form of the operator."""
    sizes = input.shape[2:]
    scales = arguments.get("scale_factors") or [arguments[name] for name in arguments if name.startswith("scales")]
    scales = scales or [None] * len(sizes)
    wanted = arguments["output_size"]
    if wanted is None:
        wanted = [_scaled(size, scale) for size, scale in zip(sizes, scales, strict=True)]
    return [_Axis(axis, *rest) for axis, *rest in zip(range(2, 2 + len(sizes)), sizes, wanted, scales, strict=True)]


def _flags(arguments: dict[str, Any]) -> list[bool]:
    return [arguments["align_corners"]] if "align_corners" in arguments else []


def _along(net: Network, input: Tensor, axis: _Axis, method: _Method) -> Tensor:
    """Interpolation along a dimension whose size only a run knows."""
    axis = replace(axis, wanted=net.result.shape[axis.axis])
    if method.reach:
        return times_along(net, input, _smoothing(net, axis, method), axis.axis)
    if method.mode == "NEAREST":
        at = axis.centres(net, 0.5) if method.rounding == "HALF_UP" else axis.starts(net)
        places = net.elementwise("MIN", net.unary("FLOOR", at), vector(net, [axis.size - 1]))
        return net.gather(input, net.cast(places, torch.int32), axis.axis)
    places = net.binary("SUB", axis.centres(net, 0.5), 0.5)
    if method.mode == "LINEAR":
        places = net.binary("MAX", places, 0.0)
    last = vector(net, [axis.size - 1])
    found = taps(net, net.unsqueeze(places, 1), [axis.size], method.kernel, lambda at: clamp(net, at, last))
    shape = found.indices.shape[:2]
    picked = net.gather(input, net.reshape(found.indices, shape), axis.axis)
    weights = net.reshape(net.cast(found.weights, input.dtype), (*shape, *(1,) * (input.rank - axis.axis - 1)))
    return net.reduce("SUM", net.elementwise("PROD", picked, weights), [axis.axis], keep_dims=False)


def _smoothing(net: Network, axis: _Axis, method: _Method) -> Tensor:
    """[size, wanted]: how much of each old element, which has a width, there is in each new one."""
    width = net.binary("MAX", axis.ratio(net), 1.0)
    old = net.binary("SUM", net.iota(0, 1, axis.size, torch.float32), 0.5)
    apart = net.elementwise("SUB", net.unsqueeze(old, 1), axis.centres(net, 0.5))
    distance = net.elementwise("DIV", net.unary("ABS", apart), width)
    if method.reach == 1:
        weights = net.binary("MAX", net.binary("SUB", 1.0, distance), 0.0)
    elif method.reach == 3:
        window = net.elementwise("PROD", _sinc(net, distance), _sinc(net, net.binary("DIV", distance, 3.0)))
        weights = net.select(net.binary("LESS", distance, 3.0), window, net.tensor(0.0, torch.float32))
    else:
        near, far = (_polynomial(net, distance, factors) for factors in ((1.5, -2.5, 0.0, 1.0), (-0.5, 2.5, -4.0, 2.0)))
        far = net.select(net.binary("LESS", distance, 2.0), far, net.tensor(0.0, torch.float32))
        weights = net.select(net.binary("LESS", distance, 1.0), near, far)
    return net.elementwise("DIV", weights, net.reduce("SUM", weights, [0], keep_dims=True))


def _sinc(net: Network, values: Tensor) -> Tensor:
    angle = net.binary("PROD", values, math.pi)
    is_zero = net.binary("EQUAL", angle, 0.0)
    one = net.tensor(1.0, torch.float32)
    return net.select(is_zero, one, net.elementwise("DIV", net.unary("SIN", angle), angle))


def _polynomial(net: Network, values: Tensor, factors: Sequence[float]) -> Tensor:
    highest, *lower = factors
    result = net.tensor(highest, torch.float32)
    for factor in lower:
        result = net.binary("SUM", net.elementwise("PROD", result, values), factor)
    return result


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
            if axis in by_layer:
                continue
            if not axis.is_static:
                input = _along(net, input, axis, method)
                continue
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
            if axis.wanted is None:
                return f"dimension {axis.axis} is dynamic and scaled by {axis.scale}, which is no simple fraction"
            if method.reach and not axis.is_static and any(_flags(arguments)):
                return f"dimension {axis.axis} is dynamic and smoothed (antialias) with its corners aligned"
        if method.mode == "NEAREST" and input.dtype == torch.uint8:
            return None
        return only_floats(input=input)

    return interpolate, unsupported


_NEAREST = _Method(aten.upsample_nearest2d.default, "NEAREST", "ASYMMETRIC")
_EXACT = _Method(aten._upsample_nearest_exact2d.default, "NEAREST", "HALF_PIXEL", "HALF_UP")
_LINEAR = _Method(aten.upsample_bilinear2d.default, "LINEAR")
_CUBIC = _Method(aten.upsample_bicubic2d.default, "CUBIC", kernel=CUBIC)

for _method, *_packets in (
    (_NEAREST, aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    (_EXACT, aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d),
    (_LINEAR, aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d),
    (_CUBIC, aten.upsample_bicubic2d),
    (_Method(aten._upsample_bilinear2d_aa.default, reach=1), aten._upsample_bilinear2d_aa),
    (_Method(aten._upsample_bicubic2d_aa.default, reach=2), aten._upsample_bicubic2d_aa),
):
    _interpolate, _unsupported = _interpolation(_method)
    _targets = [overload for packet in _packets for overload in (packet.default, packet.vec)]
    converter(*_targets, unsupported=_unsupported)(_interpolate)

if hasattr(aten, "_upsample_lanczos2d_aa"):  # from torch 2.15 on
    _interpolate, _unsupported = _interpolation(_Method(aten._upsample_lanczos2d_aa.default, reach=3))
    _targets = [aten._upsample_lanczos2d_aa.default, aten._upsample_lanczos2d_aa.vec]
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
