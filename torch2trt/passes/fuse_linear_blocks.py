"""Linear layer, bias and activation as one block."""

from __future__ import annotations

import torch

from torch2trt.graph.ops import LINEAR_BLOCK
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call, replace_chain
from torch2trt.graph.schema import bind
from torch2trt.passes.activations import following_activation
from torch2trt.settings import Settings

aten = torch.ops.aten


def fuse_linear_blocks(program: Program, settings: Settings) -> None:
    """Replace each linear layer that an activation follows by one block."""
    for linear in program.calls:
        if linear.target is not aten.linear.default or not program.spec(linear).dtype.is_floating_point:
            continue
        activation, last = following_activation(program, linear)
        bound = bind(linear)
        if last is linear or program.spec(bound["weight"]).rank != 2:
            continue  # what a vector makes has no channels
        with program.graph.graph.inserting_before(last):
            block = call(
                program.graph.graph,
                LINEAR_BLOCK,
                bound["input"],
                bound["weight"],
                bound["bias"],
                *activation,
                like=linear,
            )
        replace_chain(linear, last, block)
