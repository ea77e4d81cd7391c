"""What depends on weights and constants alone."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.program import Program


def constants(program: Program) -> set[fx.Node]:
    """The weights, and the calls on nothing but weights and numbers, which could be weights of the engine."""
    found = set(program.weight_placeholders)
    for node in program.calls:
        if all(argument in found for argument in node.all_input_nodes) and _is_deterministic(program, node):
            found.add(node)
    return found


def _is_deterministic(program: Program, node: fx.Node) -> bool:
    if program.is_size(node):
        return False
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
