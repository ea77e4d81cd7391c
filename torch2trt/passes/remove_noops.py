"""Remove operators that change nothing in a functional graph."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten

IDENTITIES = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.dropout.default,
        aten.lift_fresh_copy.default,
    }
)
"""The operators that this pass leaves none of."""
_RESHAPING = frozenset(
    {
        aten._to_copy.default,
        aten.reshape.default,
        aten.expand.default,
    }
)


def remove_noops(program: Program, settings: Settings) -> None:
    """Drop copies, aliases and dropout, and casts, views and expansions to what their operand is already."""
    for node in program.calls:
        if node.target in IDENTITIES or (node.target in _RESHAPING and _keeps(program, node)):
            source = bind(node)["input"]
            node.replace_all_uses_with(source)
            program.graph.graph.erase_node(node)


def _keeps(program: Program, node: fx.Node) -> bool:
    source = bind(node)["input"]
    return isinstance(source, fx.Node) and program.spec(source) == program.spec(node)
