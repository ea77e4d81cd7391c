"""Mixtures of experts: rows that are multiplied by the matrix of the group that each is in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.converters.searching import found
from torch2trt.sizes import DimRange, TensorSpec, largest, volume
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

_MOST_EXPERTS = 16  # all of them are computed for every row
_MOST_RESULTS = 2**28


def _unsupported(input: TensorSpec, weight: TensorSpec, ranges: Mapping[str, DimRange], **_: Any) -> str | None:
    if input.rank != 2 or weight.rank != 3:
        return "groups of columns, or of several inputs"
    experts, results = weight.shape[0], volume((weight.shape[0], input.shape[0], weight.shape[2]))
    if largest(experts, ranges) > _MOST_EXPERTS or largest(results, ranges) > _MOST_RESULTS:
        return f"{experts} experts, which would all be computed for each of {input.shape[0]} rows"
    return None


def _grouped(net: Network, input: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """[rows, out] of [rows, in] and [experts, in, out]; each expert's rows end where ``ends`` [experts] says."""
    groups = found(net, net.cast(ends, torch.int32), net.iota(0, 1, input.shape[0], torch.int32), right=True)
    experts = net.unsqueeze(net.iota(0, 1, weight.shape[0], torch.int32), 1)
    own = net.unsqueeze(net.elementwise("EQUAL", net.unsqueeze(groups, 0), experts), 2)
    every = net.matmul(net.unsqueeze(input, 0), weight)
    return net.reduce("SUM", net.select(own, every, net.tensor(0, input.dtype)), [0], False)


@converter("transformers.grouped_mm_fallback.default", unsupported=_unsupported)
def grouped_mm_fallback(net: Network, input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """grouped_mm_fallback(Tensor input, Tensor weight, Tensor offs) -> Tensor"""
    return _grouped(net, input, weight, offs)


def _native_unsupported(
    input: TensorSpec, mat2: TensorSpec, offs: TensorSpec | None, bias: Any, ranges: Mapping[str, DimRange], **_: Any
) -> str | None:
    if offs is None or bias is not None:
        return "groups without their ends, or with a bias"
    return _unsupported(input, mat2, ranges)


@converter(torch.ops.aten._grouped_mm.default, unsupported=_native_unsupported)
def grouped_mm(
    net: Network, input: Tensor, mat2: Tensor, offs: Tensor, bias: None, out_dtype: torch.dtype | None
) -> Tensor:
    """_grouped_mm(Tensor self, Tensor mat2, Tensor? offs=None, Tensor? bias=None, ScalarType? out_dtype=None)"""
    return net.cast(_grouped(net, input, mat2, offs), net.result.dtype)
