"""Pooling: by windows of one size, and by as many windows as the result has elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch2trt.converters.integer_windows import integer_average
from torch2trt.converters.products import times_along
from torch2trt.converters.reasons import only_floats, products
from torch2trt.converters.registry import converter
from torch2trt.converters.windows import Lane, adaptive, bounds, full, lanes_of, largest, regular
from torch2trt.sizes import DimRange, Size, TensorSpec, volume
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.shaping import is_static
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

Pooled = tuple[Tensor, Tensor | None]


# -- windows of one size -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Windows:
    """Windows over the last dimensions."""

    extent: list[int]
    stride: list[int]
    padding: list[int]
    ceil_mode: bool

    @classmethod
    def of(cls, spatial: int, arguments: dict[str, Any]) -> _Windows:
        """The windows that an operator's arguments describe; one number stands for all dimensions."""
        extent, stride, padding = (full(spatial, arguments[name]) for name in ("kernel_size", "stride", "padding"))
        return cls(extent, stride or extent, padding, arguments["ceil_mode"])

    def padding_after(self, sizes: Sequence[Size]) -> list[int]:
        """The padding at the end of each dimension with which rounding down yields torch's size.

        In ceil mode torch adds the window that hangs over the end, unless it would start in the padding.
        """
        if not self.ceil_mode or not all(isinstance(size, int) for size in sizes):
            return self.padding
        after: list[int] = []
        for size, extent, stride, before in zip(sizes, self.extent, self.stride, self.padding, strict=True):
            count = -(-(size + 2 * before - extent) // stride) + 1
            if (count - 1) * stride >= size + before:
                count -= 1
            after.append(max(0, (count - 1) * stride + extent - size - before))
        return after

    def none_starts_in_padding(self) -> bool:
        """Whether that holds for all sizes, so that TensorRT's way to round up is torch's."""
        return all(
            stride <= extent - padding
            for extent, stride, padding in zip(self.extent, self.stride, self.padding, strict=True)
        )

    def pool(self, net: Network, kind: str, input: Tensor, *, count_include_pad: bool = False) -> Tensor:
        """MAX or AVERAGE of the windows; padding may count, as may what is beyond it."""
        sizes = input.shape[-len(self.extent) :]
        return net.pooling(
            kind,
            input,
            window=self.extent,
            stride=self.stride,
            padding=self.padding,
            padding_after=self.padding_after(sizes),
            round_up=self.ceil_mode and not all(isinstance(size, int) for size in sizes),
            count_include_pad=count_include_pad,
        )

    @property
    def lanes(self) -> list[Lane]:
        """How they lie along each dimension."""
        return lanes_of(len(self.extent), self.extent, self.stride, self.padding)

    def elements(self, sizes: Sequence[int], counts: Sequence[int], *, padded: bool) -> torch.Tensor:
        """How many elements each of so many windows has, INT64 [*counts]; padding may count."""
        found = torch.ones((), dtype=torch.int64)
        for lane, size, count in zip(self.lanes, sizes, counts, strict=True):
            places, more = lane.places(count), lane.padding if padded else 0
            found = found[..., None] * ((places >= -more) & (places < size + more)).sum(0)
        return found

    def overhang(self, sizes: Sequence[Size], counts: Sequence[Size]) -> torch.Tensor | None:
        """Sizes of the windows relative to those without what is beyond the padding; None where there is no such."""
        if all(more <= padding for more, padding in zip(self.padding_after(sizes), self.padding, strict=True)):
            return None
        return math.prod(self.extent) / self.elements(sizes, counts, padded=True)


def _max_pool(spatial: int, *, indices: bool) -> Callable[..., Tensor | Pooled]:
    def max_pool(net: Network, input: Tensor, **arguments: Any) -> Tensor | Pooled:
        """max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, ...) -> Tensor"""
        windows, dilation = _Windows.of(spatial, arguments), full(spatial, arguments["dilation"])
        if 1 in net.used or any(step != 1 for step in dilation) or input.dtype not in FLOAT_DTYPES:
            result = net.results[0]
            assert result is not None
            sizes, counts = input.shape[-spatial:], result.shape[-spatial:]
            steps = zip(windows.extent, windows.stride, windows.padding, dilation, strict=True)
            lanes = [
                regular(net, size, count, extent=extent, stride=stride, padding=padding, dilation=step)
                for size, count, (extent, stride, padding, step) in zip(sizes, counts, steps, strict=True)
            ]
            values, places = largest(net, input, lanes)
        else:
            values, places = windows.pool(net, "MAX", input), None
        return (values, places) if indices else values

    return max_pool


def _max_pool_unsupported(spatial: int) -> Callable[..., str | None]:
    def unsupported(input: TensorSpec, **arguments: Any) -> str | None:
        windows = _Windows.of(spatial, arguments)
        static = all(isinstance(size, int) for size in input.shape[-spatial:])
        if windows.ceil_mode and not static and not windows.none_starts_in_padding():
            return "ceil_mode over a dynamic size, where a window may start in the padding"
        return None if input.dtype in (torch.int32, torch.int64) else only_floats(input=input)

    return unsupported


def _avg_pool(spatial: int) -> Callable[..., Tensor]:
    def avg_pool(
        net: Network, input: Tensor, count_include_pad: bool, divisor_override: int | None = None, **arguments: Any
    ) -> Tensor:
        """avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, ...) -> Tensor"""
        windows = _Windows.of(spatial, arguments)
        sizes, counts = input.shape[-spatial:], net.result.shape[-spatial:]
        if input.dtype not in FLOAT_DTYPES:
            numbers = windows.elements(sizes, counts, padded=count_include_pad)
            if divisor_override is not None:
                numbers = torch.full_like(numbers, divisor_override)
            return integer_average(net, input, windows.lanes, counts, numbers)
        if divisor_override is not None:
            sums = windows.pool(net, "AVERAGE", input, count_include_pad=True)
            return net.binary("PROD", sums, math.prod(windows.extent) / divisor_override)
        count_include_pad &= any(windows.padding)
        result = windows.pool(net, "AVERAGE", input, count_include_pad=count_include_pad)
        overhang = windows.overhang(sizes, counts) if count_include_pad else None
        if overhang is None:
            return result
        # TensorRT counts all padding, torch not what ceil mode adds.
        return net.elementwise("PROD", result, net.constant(overhang.to(result.dtype)))

    return avg_pool


def _avg_pool_unsupported(spatial: int) -> Callable[..., str | None]:
    def unsupported(
        input: TensorSpec,
        kernel_size: Sequence[int],
        ceil_mode: bool,
        flavour: Flavour,
        ranges: Mapping[str, DimRange],
        results: Sequence[TensorSpec],
        **_: Any,
    ) -> str | None:
        static = is_static(input.shape[-spatial:])
        if ceil_mode and not static:
            return "averages in ceil_mode over a dynamic size"
        if input.dtype not in FLOAT_DTYPES and not static:
            return "windows over a dynamic number of integers"
        count = volume([*results[0].shape, *full(spatial, kernel_size)])
        return products(count, (input,), flavour, ranges)

    return unsupported


for _spatial in (1, 2, 3):
    _plain, _with_indices, _average = (
        getattr(aten, name.format(_spatial)).default
        for name in ("max_pool{}d", "max_pool{}d_with_indices", "avg_pool{}d")
    )
    converter(_plain, unsupported=_max_pool_unsupported(_spatial))(_max_pool(_spatial, indices=False))
    converter(_with_indices, unsupported=_max_pool_unsupported(_spatial))(_max_pool(_spatial, indices=True))
    converter(_average, unsupported=_avg_pool_unsupported(_spatial))(_avg_pool(_spatial))


# -- windows by their number -------------------------------------------------------------------------------------------


def _average_along(net: Network, input: Tensor, axis: int, wanted: Size) -> Tensor:
    size = input.shape[axis]
    starts, stops = bounds(net, size, wanted)
    place = net.unsqueeze(net.iota(0, 1, size, torch.int64), 1)
    after, before = net.elementwise("LESS", place, starts), net.elementwise("LESS", place, stops)
    inside = net.cast(net.elementwise("XOR", after, before), torch.float32)
    count = net.cast(net.elementwise("SUB", stops, starts), torch.float32)
    return times_along(net, input, net.elementwise("DIV", inside, count), axis)


def _largest_along(net: Network, input: Tensor, axis: int, wanted: Size) -> Tensor:
    gathered = net.gather(input, adaptive(net, input.shape[axis], wanted).places, axis)
    return net.reduce("MAX", gathered, [axis + 1], keep_dims=False)


def _adaptive(
    net: Network, input: Tensor, output_size: Sequence[Size], kind: str, reduction: str, along: Callable[..., Tensor]
) -> Tensor:
    sizes, axes = input.shape[-len(output_size) :], range(input.rank - len(output_size), input.rank)
    changed = [pair for pair in zip(axes, sizes, output_size, strict=True) if pair[1] != pair[2]]
    if all(
        isinstance(size, int) and isinstance(wanted, int) and size % wanted == 0 and wanted != 1
        for _, size, wanted in changed
    ):
        window = [int(size) // int(wanted) for size, wanted in zip(sizes, output_size, strict=True)]
        return net.pooling(kind, input, window=window, stride=window, padding=[0] * len(window)) if changed else input
    if whole := [axis for axis, _, wanted in changed if wanted == 1]:
        input = net.reduce(reduction, input, whole, keep_dims=True)
    for axis, _, wanted in changed:
        if wanted != 1:
            input = along(net, input, axis, wanted)
    return input


@converter(
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
    *(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default),
    unsupported=only_floats,
)
def adaptive_avg_pool(net: Network, input: Tensor, output_size: Sequence[Size]) -> Tensor:
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    return _adaptive(net, input, output_size, "AVERAGE", "AVG", _average_along)


@converter(
    *(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default),
    unsupported=only_floats,
)
def adaptive_max_pool(net: Network, input: Tensor, output_size: Sequence[Size]) -> Pooled:
    """adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor)"""
    if 1 not in net.used:
        return _adaptive(net, input, output_size, "MAX", "MAX", _largest_along), None
    sizes = input.shape[-len(output_size) :]
    return largest(net, input, [adaptive(net, size, wanted) for size, wanted in zip(sizes, output_size, strict=True)])


# -- back --------------------------------------------------------------------------------------------------------------


@converter(aten.max_unpool2d.default, aten.max_unpool3d.default)
def max_unpool(net: Network, input: Tensor, indices: Tensor, output_size: Sequence[Size], **_: Any) -> Tensor:
    """max_unpool2d(Tensor self, Tensor indices, SymInt[2] output_size) -> Tensor"""
    *others, _last = input.shape[: input.rank - len(output_size) + 1]
    planes, whole = volume(others), volume(output_size)
    values, places = (net.reshape(tensor, (planes, volume(tensor.shape[len(others) :]))) for tensor in (input, indices))
    nothing = net.expand(net.tensor(0, input.dtype), (planes, whole))
    return net.reshape(net.scatter_elements(nothing, places, values, 1), (*others, *output_size))
