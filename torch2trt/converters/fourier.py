"""Fourier transforms as products with matrices of sines and cosines.

A transform of n points is one product up to 512 of them; more are n1 rows of n2 columns, transformed along both
dimensions with a multiplication in between (Cooley and Tukey's), so that the matrices stay small. In float32 the error
is that of the sums, which grows as the root of their length: below 1e-6 of the result's scale at every size taken.
With TF32 it is that of TF32, as of any other product.
"""

from __future__ import annotations

import math

import torch

from torch2trt.converters.registry import converter
from torch2trt.graph.ops import DFT, REAL_INVERSE_DFT
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

Parts = tuple[Tensor, Tensor]
Points = tuple[Tensor, Tensor | None]

_DIRECT = 512  # points transformed by one matrix
_LARGEST_FACTOR = 1024  # whose matrix takes 8 MB
_MOST = 1 << 16


def _rows_and_columns(size: int) -> tuple[int, int]:
    """The two factors of a size that are nearest to each other, 1 first where one matrix does."""
    if size <= _DIRECT:
        return 1, size
    rows = next(factor for factor in range(math.isqrt(size), 0, -1) if size % factor == 0)
    return rows, size // rows


def _size_unsupported(size: Size) -> str | None:
    if not isinstance(size, int):
        return "a Fourier transform along a dynamic dimension: the matrices that it is made of have fixed sizes"
    if size > _MOST or _rows_and_columns(size)[1] > _LARGEST_FACTOR:
        return (
            f"a Fourier transform of {size} points: TensorRT has none, and its matrices take up to {_MOST} points "
            f"that are a product of two numbers up to {_LARGEST_FACTOR}"
        )
    return None


def _dft_unsupported(real: TensorSpec, dim: int, **_: object) -> str | None:
    return _size_unsupported(real.shape[dim])


def _inverse_unsupported(size: Size, **_: object) -> str | None:
    return _size_unsupported(size)


def _scale(size: int, normalization: int) -> float:
    return (1.0, size**-0.5, 1.0 / size)[normalization]


def _waves(size: int, points: torch.Tensor, frequencies: torch.Tensor, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and imaginary part of ``exp(sign 2 pi i point frequency / size)``, [points, frequencies], in float64."""
    angles = torch.outer(points, frequencies) % size * (2 * math.pi / size)
    return angles.cos(), sign * angles.sin()


def _transform(net: Network, points: Points, size: int, count: int, sign: int, scale: float, *, rows: bool) -> Parts:
    """The first frequencies along the last dimension, or of the rows along the last but one."""
    real, imag = points
    waves = torch.cat(_waves(size, torch.arange(size), torch.arange(count), sign), 1) * scale
    matrix = net.constant((waves.T if rows else waves).float().contiguous())
    axis = -2 if rows else -1

    def times(part: Tensor) -> tuple[Tensor, Tensor]:
        product = net.matmul(matrix, part) if rows else net.matmul(part, matrix)
        return net.narrow(product, axis, 0, count), net.narrow(product, axis, count, count)

    cosines, sines = times(real)
    if imag is None:
        return cosines, sines
    imag_cosines, imag_sines = times(imag)
    return net.elementwise("SUB", cosines, imag_sines), net.elementwise("SUM", sines, imag_cosines)


def _turned(net: Network, points: Parts, waves: tuple[torch.Tensor, torch.Tensor]) -> Parts:
    """Complex numbers times constant ones."""
    real, imag = points
    cosine, sine = (net.constant(wave.float()) for wave in waves)

    def combined(operation: str, first: Tensor, second: Tensor) -> Tensor:
        return net.elementwise(operation, net.elementwise("PROD", real, first), net.elementwise("PROD", imag, second))

    return combined("SUB", cosine, sine), combined("SUM", sine, cosine)


def _fourier(net: Network, points: Points, count: int, sign: int, scale: float) -> Parts:
    """The first frequencies of the points in the last dimension, in float32."""
    *outer, size = points[0].shape
    assert isinstance(size, int)
    rows, columns = _rows_and_columns(size)
    if rows == 1:
        return _transform(net, points, size, count, sign, scale, rows=False)

    def table(part: Tensor) -> Tensor:
        return net.reshape(part, (*outer, rows, columns))

    def in_order(part: Tensor) -> Tensor:
        # What is at row k1 and column k2 is the frequency k1 + rows k2.
        return net.narrow(net.reshape(net.transpose(part, -2, -1), (*outer, size)), -1, 0, count)

    real, imag = points
    of_rows = table(real), None if imag is None else table(imag)
    found = _transform(net, of_rows, rows, rows, sign, 1.0, rows=True)
    found = _turned(net, found, _waves(size, torch.arange(rows), torch.arange(columns), sign))
    found = _transform(net, found, columns, columns, sign, scale, rows=False)
    return in_order(found[0]), in_order(found[1])


@converter(DFT, unsupported=_dft_unsupported)
def dft(
    net: Network, real: Tensor, imag: Tensor | None, dim: int, inverse: bool, onesided: bool, normalization: int
) -> tuple[Tensor, Tensor]:
    """dft(Tensor real, Tensor? imag, SymInt dim, bool inverse, bool onesided, SymInt normalization)"""
    size, dtype, last = real.shape[dim], real.dtype, real.rank - 1
    assert isinstance(size, int)

    def points(part: Tensor) -> Tensor:
        return net.transpose(net.cast(part, torch.float32), dim, last)

    count = size // 2 + 1 if onesided else size
    parts = points(real), None if imag is None else points(imag)
    found = _fourier(net, parts, count, 1 if inverse else -1, _scale(size, normalization))
    first, second = (net.cast(net.transpose(part, dim, last), dtype) for part in found)
    return first, second


@converter(REAL_INVERSE_DFT, unsupported=_inverse_unsupported)
def real_inverse_dft(net: Network, real: Tensor, imag: Tensor, dim: int, size: int, normalization: int) -> Tensor:
    """real_inverse_dft(Tensor real, Tensor imag, SymInt dim, SymInt size, SymInt normalization)"""
    dtype, last, count = real.dtype, real.rank - 1, size // 2 + 1
    # A frequency of the second half is the conjugate of one of the first, which counts twice for it.
    weights = torch.full((count,), 2.0, dtype=torch.float64)
    weights[0] = 1
    if size % 2 == 0:
        weights[-1] = 1
    weights *= _scale(size, normalization)
    parts = [
        net.transpose(net.cast(net.narrow(part, dim, 0, count), torch.float32), dim, last) for part in (real, imag)
    ]
    if size <= _DIRECT:
        cosine, sine = _waves(size, torch.arange(count), torch.arange(size), 1)
        products = [
            net.matmul(part, net.constant((weights.unsqueeze(1) * waves).float()))
            for part, waves in zip(parts, (cosine, -sine), strict=True)
        ]
        found = net.elementwise("SUM", *products)
    else:
        factor = net.constant(weights.float())
        after = [*[0] * last, size - count]
        padded = [net.pad(net.elementwise("PROD", part, factor), [0] * (last + 1), after) for part in parts]
        found, _ = _fourier(net, (padded[0], padded[1]), size, 1, 1.0)
    return net.cast(net.transpose(found, dim, last), dtype)
