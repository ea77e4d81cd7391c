"""Padding: constant, reflected, replicated, circular; negative amounts crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.converters.registry import converter
from torch2trt.sizes import Size, TensorSpec
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

_MODES = {"constant": "FILL", "reflect": "REFLECT", "replicate": "CLAMP", "circular": "WRAP"}


def _pad(net: Network, input: Tensor, pad: Sequence[Size], mode: str, value: float | None = None) -> Tensor:
    # torch counts from the last dimension: [left, right, top, bottom, …].
    behind = [0] * (input.rank - len(pad) // 2)
    before, after = ([*behind, *reversed(pad[side::2])] for side in (0, 1))
    if not any((*before, *after)):
        return input
    return net.pad(input, before, after, mode=_MODES[mode], value=value or 0)


def _unsupported(input: TensorSpec, pad: Sequence[Size], mode: str = "constant", **_: Any) -> str | None:
    if input.dtype in (torch.uint8, torch.int8):
        return f"TensorRT pads no {input.dtype} tensors"
    if mode == "circular" and any(isinstance(amount, int) and amount < 0 for amount in pad):
        return f"circular padding that crops (pad {list(pad)})"
    return None


@converter(aten.constant_pad_nd.default, unsupported=_unsupported)
def constant_pad_nd(net: Network, input: Tensor, pad: Sequence[Size], value: float) -> Tensor:
    """constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    return _pad(net, input, pad, "constant", value)


@converter(aten.pad.default, unsupported=_unsupported)
def pad(net: Network, input: Tensor, pad: Sequence[Size], mode: str, value: float | None) -> Tensor:
    """pad(Tensor self, SymInt[] pad, str mode="constant", float? value=None) -> Tensor"""
    return _pad(net, input, pad, mode, value)


def _edge_unsupported(input: TensorSpec, padding: Sequence[Size]) -> str | None:
    return _unsupported(input, padding)


@converter(
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    unsupported=_edge_unsupported,
)
def reflection_pad(net: Network, input: Tensor, padding: Sequence[Size]) -> Tensor:
    """reflection_pad2d(Tensor self, SymInt[4] padding) -> Tensor"""
    return _pad(net, input, padding, "reflect")


@converter(
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    unsupported=_edge_unsupported,
)
def replication_pad(net: Network, input: Tensor, padding: Sequence[Size]) -> Tensor:
    """replication_pad2d(Tensor self, SymInt[4] padding) -> Tensor"""
    return _pad(net, input, padding, "replicate")
