"""Which operators are the activations that fused blocks end in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import only_user
from torch2trt.graph.schema import bind

aten = torch.ops.aten

Match = tuple[str, float, float]


def _clip(low: Any, high: Any) -> Match | None:
    if low == 0 and high is None:
        return "relu", 0.0, 0.0
    if isinstance(low, int | float) and isinstance(high, int | float):
        return "clip", float(low), float(high)
    return None


_ACTIVATIONS: dict[Any, Callable[[dict[str, Any]], Match | None]] = {
    aten.relu.default: lambda args: ("relu", 0.0, 0.0),
    aten.relu6.default: lambda args: ("clip", 0.0, 6.0),
    aten.hardtanh.default: lambda args: _clip(args["min_val"], args["max_val"]),
    aten.clamp.default: lambda args: _clip(args["min"], args["max"]),
    aten.leaky_relu.default: lambda args: ("leaky_relu", float(args["negative_slope"]), 0.0),
    aten.sigmoid.default: lambda args: ("sigmoid", 0.0, 0.0),
    aten.hardsigmoid.default: lambda args: ("hardsigmoid", 0.0, 0.0),
    aten.hardswish.default: lambda args: ("hardswish", 0.0, 0.0),
    aten.silu.default: lambda args: ("silu", 0.0, 0.0),
    aten.gelu.default: lambda args: ("gelu" if args["approximate"] == "none" else "gelu_tanh", 0.0, 0.0),
    aten.tanh.default: lambda args: ("tanh", 0.0, 0.0),
}


def following_activation(program: Program, node: fx.Node) -> tuple[Match, fx.Node]:
    """The activation that alone uses a node, as name, alpha and beta of :data:`torch2trt.graph.ops.ACTIVATIONS`.

    Returns:
        The activation and its node, or ``"none"`` and the node itself.
    """
    following = only_user(node)
    if following is not None and following.target in _ACTIVATIONS:
        found = _ACTIVATIONS[following.target](bind(following))
        same = program.spec(following) == program.spec(node)
        if found is not None and same and all(map(math.isfinite, found[1:])):
            return found, following
    return ("none", 0.0, 0.0), node
