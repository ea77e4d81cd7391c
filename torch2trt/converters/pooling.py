"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _full(values: int | Sequence[int], spatial: int) -> list[int]:
    values = [values] if isinstance(values, int) else list(values)
    return values * spatial if len(values) == 1 else values


def _padding_after(
    sizes: Sequence[Size],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> list[int] | None:
    """The padding at the end of each dimension with which rounding down yields torch's size; None where unknown.

    In ceil mode torch adds the window that hangs over the end, unless it would start in the padding.
    """
    if not ceil_mode:
        return list(padding)
    after: list[int] = []
    for size, extent, step, before in zip(sizes, window, stride, padding, strict=True):
        if not isinstance(size, int):
            return None
        count = -(-(size + 2 * before - extent) // step) + 1
        if (count - 1) * step >= size + before:
            count -= 1
        after.append(max(0, (count - 1) * step + extent - size - before))
    return after


def _pool_unsupported(spatial: int) -> Any:
    def unsupported(input: TensorSpec, kernel_size: Sequence[int], ceil_mode: bool, **arguments: Any) -> str | None:
        window = _full(kernel_size, spatial)
        stride = _full(arguments["stride"] or window, spatial)
        padding = _full(arguments["padding"], spatial)
        if input.dtype not in FLOAT_DTYPES:
            return f"TensorRT pools floating-point tensors only (got {input.dtype})"
        if any(amount != 1 for amount in _full(arguments.get("dilation", 1), spatial)):
            return f"TensorRT has no dilated pooling (dilation {arguments['dilation']})"
        if arguments.get("divisor_override") is not None and arguments["divisor_override"] <= 0:
            return "divisor_override must be positive"
        after = _padding_after(input.shape[-spatial:], window, stride, padding, ceil_mode)
        if after is None:
            return "ceil_mode over a dynamic size"
        if ceil_mode and arguments.get("count_include_pad") and any(after) and after != padding:
            return "ceil_mode with a window over the end, whose padding counts only in part"
        return None

    return unsupported


def _max_pool(
    net: Network,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    spatial: int,
) -> Tensor:
    window = _full(kernel_size, spatial)
    stride, padding = _full(stride or window, spatial), _full(padding, spatial)
    after = _padding_after(input.shape[-spatial:], window, stride, padding, ceil_mode)
    return net.pooling("MAX", input, window=window, stride=stride, padding=padding, padding_after=after)


@converter(aten.max_pool1d.default, unsupported=_pool_unsupported(1))
def max_pool1d(net: Network, input: Tensor, **arguments: Any) -> Tensor:
    """max_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=0, ...) -> Tensor"""
    return _max_pool(net, input, spatial=1, **arguments)


@converter(aten.max_pool2d.default, unsupported=_pool_unsupported(2))
def max_pool2d(net: Network, input: Tensor, **arguments: Any) -> Tensor:
    """max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, ...) -> Tensor"""
    return _max_pool(net, input, spatial=2, **arguments)


@converter(aten.max_pool3d.default, unsupported=_pool_unsupported(3))
def max_pool3d(net: Network, input: Tensor, **arguments: Any) -> Tensor:
    """max_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, ...) -> Tensor"""
    return _max_pool(net, input, spatial=3, **arguments)


def _avg_pool(
    net: Network,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    spatial: int,
    divisor_override: int | None = None,
) -> Tensor:
    window = _full(kernel_size, spatial)
    stride, padding = _full(stride or window, spatial), _full(padding, spatial)
    after = _padding_after(input.shape[-spatial:], window, stride, padding, ceil_mode)
    result = net.pooling(
        "AVERAGE",
        input,
        window=window,
        stride=stride,
        padding=padding,
        padding_after=after,
        count_include_pad=count_include_pad or divisor_override is not None,
    )
    if divisor_override is None:
        return result
    return net.binary("PROD", result, float(torch.tensor(window).prod()) / divisor_override)


@converter(aten.avg_pool1d.default, unsupported=_pool_unsupported(1))
def avg_pool1d(net: Network, input: Tensor, **arguments: Any) -> Tensor:
    """avg_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=0, ...) -> Tensor"""
    return _avg_pool(net, input, spatial=1, **arguments)


@converter(aten.avg_pool2d.default, unsupported=_pool_unsupported(2))
def avg_pool2d(net: Network, input: Tensor, **arguments: Any) -> Tensor:
    """avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, ...) -> Tensor"""
    return _avg_pool(net, input, spatial=2, **arguments)


@converter(aten.avg_pool3d.default, unsupported=_pool_unsupported(3))
def avg_pool3d(net: Network, input: Tensor, **arguments: Any) -> Tensor:
    """avg_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, ...) -> Tensor"""
    return _avg_pool(net, input, spatial=3, **arguments)


def _adaptive_unsupported(spatial: int) -> Any:
    def unsupported(input: TensorSpec, output_size: Sequence[int]) -> str | None:
        for size, wanted in zip(input.shape[-spatial:], output_size, strict=True):
            if wanted != 1 and not isinstance(size, int):
                return f"adaptive pooling of a dynamic size to {wanted}"
        return None

    return unsupported


def _adaptive_avg_pool(net: Network, input: Tensor, output_size: Sequence[int], spatial: int) -> Tensor:
    sizes, axes = input.shape[-spatial:], range(input.rank - spatial, input.rank)
    if all(wanted == 1 for wanted in output_size):
        return net.reduce("AVG", input, list(axes), keep_dims=True)
    if all(isinstance(size, int) and size % wanted == 0 for size, wanted in zip(sizes, output_size, strict=True)):
        window = [int(size) // wanted for size, wanted in zip(sizes, output_size, strict=True)]
        return net.pooling("AVERAGE", input, window=window, stride=window, padding=[0] * spatial)
    # Windows of unequal sizes are a matrix product along each dimension.
    result = input
    for axis, size, wanted in zip(axes, sizes, output_size, strict=True):
        if size != wanted:
            weights = net.constant(_averaging(int(size), wanted).to(input.dtype))
            moved = net.transpose(result, axis, -1)
            result = net.transpose(net.matmul(moved, weights), axis, -1)
    return result


def _averaging(size: int, wanted: int) -> torch.Tensor:
    """[size, wanted]: column i averages the window that adaptive pooling assigns to output i."""
    matrix = torch.zeros(size, wanted)
    for index in range(wanted):
        start, stop = index * size // wanted, -(-(index + 1) * size // wanted)
        matrix[start:stop, index] = 1 / (stop - start)
    return matrix


@converter(aten.adaptive_avg_pool1d.default, unsupported=_adaptive_unsupported(1))
def adaptive_avg_pool1d(net: Network, input: Tensor, output_size: Sequence[int]) -> Tensor:
    """adaptive_avg_pool1d(Tensor self, int[1] output_size) -> Tensor"""
    return _adaptive_avg_pool(net, input, output_size, 1)


@converter(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default, unsupported=_adaptive_unsupported(2))
def adaptive_avg_pool2d(net: Network, input: Tensor, output_size: Sequence[int]) -> Tensor:
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    return _adaptive_avg_pool(net, input, output_size, 2)


@converter(aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default, unsupported=_adaptive_unsupported(3))
def adaptive_avg_pool3d(net: Network, input: Tensor, output_size: Sequence[int]) -> Tensor:
    """adaptive_avg_pool3d(Tensor self, SymInt[3] output_size) -> Tensor"""
    return _adaptive_avg_pool(net, input, output_size, 3)
