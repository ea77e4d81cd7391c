"""Every tensor of one number as ``aten.full``: it depends on no other tensor, what is made of it can be a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten

# What is empty in torch holds any values.
_NUMBERS = {
    **dict.fromkeys((aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.zero.default), 0),
    **dict.fromkeys((aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default), 0),
    **dict.fromkeys((aten.empty_strided.default, aten.new_empty_strided.default, aten.empty_permuted.default), 0),
    **dict.fromkeys((aten.ones.default, aten.ones_like.default, aten.new_ones.default), 1),
}
_GIVEN = {
    aten.full_like.default: "fill_value",
    aten.new_full.default: "fill_value",
    aten.fill.Scalar: "value",
}


def unify_factories(program: Program, settings: Settings) -> None:
    """Replace the operators that take dtype or shape from a tensor; the shape must be static or among the arguments."""
    for node in program.calls:
        number = _number(node)
        if number is not None and (shape := _shape(program, node)) is not None:
            value = node.meta["val"]
            with program.graph.graph.inserting_before(node):
                full = call(
                    node.graph, aten.full.default, shape, number, dtype=value.dtype, device=value.device, like=node
                )
            node.replace_all_uses_with(full)
            program.graph.graph.erase_node(node)


def _number(node: fx.Node) -> Any:
    if node.target in _NUMBERS:
        return _NUMBERS[node.target]
    return bind(node)[_GIVEN[node.target]] if node.target in _GIVEN else None


def _shape(program: Program, node: fx.Node) -> Any:
    bound = bind(node)
    if "size" in bound:
        return bound["size"]
    spec = program.spec(node)
    return list(spec.shape) if spec.is_static else None
