"""Distances between vectors."""

from __future__ import annotations

from typing import Any

import torch

from torch2trt.converters.reductions import linalg_vector_norm
from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_LARGE = 1 << 26  # differences, of 256 MB


def _norm(net: Network, difference: Tensor, p: float) -> Tensor:
    """The p-norm of the last dimension."""
    return linalg_vector_norm(net, difference, p, [-1], False, None)


@converter(aten.cdist.default, aten._cdist_forward.default)
def cdist(net: Network, x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Tensor:
    """cdist(Tensor x1, Tensor x2, float p=2, int? compute_mode=None) -> Tensor"""
    count = volume((*net.result.shape, x1.shape[-1]))
    # By products as torch does, which loses the digits of small distances, where the differences would not fit.
    if p == 2 and (compute_mode == 1 or (isinstance(count, int) and count > _LARGE)):
        return _by_products(net, *(net.cast(x, torch.float32) for x in (x1, x2)))
    return _norm(net, net.elementwise("SUB", net.unsqueeze(x1, -2), net.unsqueeze(x2, -3)), p)


def _by_products(net: Network, x1: Tensor, x2: Tensor) -> Tensor:
    """The root of ``|a|² + |b|² - 2 ab``."""
    squares = [net.reduce("SUM", net.elementwise("PROD", x, x), [-1], True) for x in (x1, x2)]
    lengths = net.elementwise("SUM", squares[0], net.transpose(squares[1], -2, -1))
    products = net.binary("PROD", net.matmul(x1, x2, transpose_second=True), 2.0)
    distances = net.unary("SQRT", net.binary("MAX", net.elementwise("SUB", lengths, products), 0.0))
    return net.cast(distances, net.result.dtype)


def _pdist_unsupported(input: TensorSpec, **_: Any) -> str | None:
    rows: Size = input.shape[0]
    if not isinstance(rows, int):
        return "distances between a dynamic number of rows: which rows form a pair is a constant"
    return None


@converter(aten._pdist_forward.default, unsupported=_pdist_unsupported)
def pdist_forward(net: Network, input: Tensor, p: float) -> Tensor:
    """_pdist_forward(Tensor self, float p=2) -> Tensor"""
    rows = input.shape[0]
    assert isinstance(rows, int)
    if rows < 2:
        return net.expand(net.tensor(0, input.dtype), (0,))
    pairs = torch.triu_indices(rows, rows, 1, dtype=torch.int32)
    first, second = (net.gather(input, net.constant(row), 0) for row in pairs)
    return _norm(net, net.elementwise("SUB", first, second), p)


@converter(aten.dist.default)
def dist(net: Network, input: Tensor, other: Tensor, p: float) -> Tensor:
    """dist(Tensor self, Tensor other, Scalar p=2) -> Tensor"""
    return linalg_vector_norm(net, net.binary("SUB", input, other), p, None, False, None)
