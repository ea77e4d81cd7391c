"""Convolution, bias, residual sum and activation as one block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torch2trt.graph.ops import CONV_BLOCK
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call, only_user
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

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


def fuse_conv_blocks(program: Program, settings: Settings) -> None:
    """Replace each convolution, with the sum and the activation that follow it alone, by one block."""
    graph = program.graph.graph
    for conv in program.calls:
        if conv.target is not aten.convolution.default or bind(conv)["transposed"]:
            continue
        last, residual = _residual(program, conv)
        activation = ("none", 0.0, 0.0)
        following = only_user(last)
        if following is not None and following.target in _ACTIVATIONS:
            found = _ACTIVATIONS[following.target](bind(following))
            if found is not None and program.spec(following) == program.spec(last):
                activation, last = found, following
        bound = bind(conv)
        if len(program.spec(conv).shape) != len(bound["stride"]) + 2 or not all(map(math.isfinite, activation[1:])):
            continue
        with graph.inserting_before(last):
            block = call(
                graph,
                CONV_BLOCK,
                *(bound[name] for name in ("input", "weight", "bias")),
                residual,
                *(bound[name] for name in ("stride", "padding", "dilation", "groups")),
                *activation,
                like=conv,
            )
        last.replace_all_uses_with(block)
        for node in _chain(conv, last):
            graph.erase_node(node)


def _residual(program: Program, conv: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The sum that follows a convolution and its other operand, or the convolution and None."""
    following = only_user(conv)
    if following is None or following.target is not aten.add.Tensor:
        return conv, None
    bound = bind(following)
    others = [bound[name] for name in ("input", "other") if bound[name] is not conv]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or bound["alpha"] != 1:
        return conv, None
    other = others[0]
    if program.is_size(other) or program.spec(other) != program.spec(conv):
        return conv, None
    return following, other


def _chain(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes from the last back to the first, each the only user of the next."""
    nodes = [first]
    while nodes[-1] is not last:
        following = only_user(nodes[-1])
        assert following is not None
        nodes.append(following)
    return nodes[::-1]
