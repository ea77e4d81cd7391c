"""Softmax, its logarithm, and the logarithm of sums of exponentials: in float32, whatever the dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten


def _in_result_dtype(net: Network, tensor: Tensor) -> Tensor:
    return net.cast(tensor, net.result.dtype)


def _wide(net: Network, tensor: Tensor) -> Tensor:
    return net.cast(_in_result_dtype(net, tensor), torch.float32)


@converter(aten.softmax.int, aten._softmax.default)
def softmax(net: Network, input: Tensor, dim: int, **_: Any) -> Tensor:
    """softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor"""
    return _in_result_dtype(net, net.softmax(_wide(net, input), dim))


def _log_sum(net: Network, shifted: Tensor, dims: Sequence[int]) -> Tensor:
    return net.unary("LOG", net.reduce("SUM", net.unary("EXP", shifted), dims, keep_dims=True))


@converter(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(net: Network, input: Tensor, dim: int, **_: Any) -> Tensor:
    """log_softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor"""
    wide = _wide(net, input)
    shifted = net.elementwise("SUB", wide, net.reduce("MAX", wide, [dim], keep_dims=True))
    return _in_result_dtype(net, net.elementwise("SUB", shifted, _log_sum(net, shifted, [dim])))


@converter(aten.logsumexp.default)
def logsumexp(net: Network, input: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    """logsumexp(Tensor self, int[1] dim, bool keepdim=False) -> Tensor"""
    wide = _wide(net, input)
    # The largest element, but never an infinity: infinity less infinity is no number.
    finite = net.activation("CLIP", net.reduce("MAX", wide, dim, keep_dims=True), *_RANGE)
    result = net.elementwise("SUM", _log_sum(net, net.elementwise("SUB", wide, finite), dim), finite)
    return _in_result_dtype(net, net.reshape(result, net.result.shape))


_RANGE = (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)
