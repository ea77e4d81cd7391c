"""Convolutions and linear layers whose result is scaled channel by channel, as layers with other weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind

aten = torch.ops.aten

LAYERS = frozenset({aten.convolution.default, aten.linear.default})
"""The operators whose weights can take a scale."""


def channel_of(bound: dict[str, Any]) -> int | None:
    """The dimension of a layer's weight that is its result's channels; None where no dimension is them all.

    Args:
        bound: the arguments of one of :data:`LAYERS` by name.
    """
    if not bound.get("transposed"):
        return 0
    return 1 if bound["groups"] == 1 else None


def scaled(layer: fx.Node, scale: fx.Node, shift: fx.Node | None, *, like: fx.Node) -> fx.Node:
    """Insert ``layer * scale + shift`` as one layer, whose weights' arithmetic is in float32 whatever their dtype.

    Args:
        layer: a call of one of :data:`LAYERS`.
        scale, shift: float32 vectors, with a number for each channel of the result.
        like: the node that stands for the scale.
    """
    bound, graph = bind(layer), layer.graph
    weight, bias = bound["weight"], bound["bias"]
    dtype, channel = weight.meta["val"].dtype, channel_of(bound)
    shape = [-1 if axis == channel else 1 for axis in range(weight.meta["val"].dim())]
    factor = call(graph, aten.view.default, scale, shape, like=like)
    product = call(graph, aten.mul.Tensor, cast(weight, torch.float32, like), factor, like=like)
    if bias is not None:
        own = call(graph, aten.mul.Tensor, cast(bias, torch.float32, like), scale, like=like)
        shift = own if shift is None else call(graph, aten.add.Tensor, own, shift, like=like)
    arguments = {
        **bound,
        "weight": cast(product, dtype, like),
        "bias": None if shift is None else cast(shift, dtype, like),
    }
    return call(graph, layer.target, *arguments.values(), like=layer)


def cast(node: fx.Node, dtype: torch.dtype, like: fx.Node) -> fx.Node:
    """A tensor in a dtype: itself, where it has it."""
    if node.meta["val"].dtype == dtype:
        return node
    return call(like.graph, aten._to_copy.default, node, dtype=dtype, like=like)
