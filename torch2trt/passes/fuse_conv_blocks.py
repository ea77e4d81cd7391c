"""Convolution, bias, residual sum and activation as one block."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.ops import CONV_BLOCK
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call, only_user, replace_chain
from torch2trt.graph.schema import bind
from torch2trt.passes.activations import following_activation
from torch2trt.settings import Settings

aten = torch.ops.aten


def fuse_conv_blocks(program: Program, settings: Settings) -> None:
    """Replace each convolution, with the sum and the activation that follow it alone, by one block."""
    graph = program.graph.graph
    for conv in program.calls:
        if conv.target is not aten.convolution.default or bind(conv)["transposed"]:
            continue
        if not program.spec(conv).dtype.is_floating_point:
            continue
        last, residual = _residual(program, conv)
        activation, last = following_activation(program, last)
        bound = bind(conv)
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
        replace_chain(conv, last, block)


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
