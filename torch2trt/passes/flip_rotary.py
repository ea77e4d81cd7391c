"""Rotary position embeddings whose halves are swapped by one slice in reverse order, and no concatenation."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.ops import ROTARY
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.passes.views import MOST_DIMS, View, emit
from torch2trt.settings import Settings

aten = torch.ops.aten


def flip_rotary(program: Program, settings: Settings) -> None:
    """Write rotary embeddings of all channels as ``x * cos + flip(x) * sin``, of halves as a dimension of their own.

    Off unless ``extra_passes`` names it: whether TensorRT makes a faster kernel of this than of a concatenation has not
    been timed on a GPU.
    """
    for node in program.calls:
        if node.target is not ROTARY or IN_TORCH in node.meta:
            continue
        bound = bind(node)
        source, cos, sin = (bound[name] for name in ("input", "cos", "sin"))
        with program.graph.graph.inserting_before(node):
            swapped = _swapped(program, source, node) if _turns_all(program, source, cos) else None
            if swapped is None:
                continue
            products = [
                call(node.graph, aten.mul.Tensor, *factors, like=node) for factors in ((source, cos), (swapped, sin))
            ]
            total = call(node.graph, aten.add.Tensor, *products, like=node)
        node.replace_all_uses_with(total)
        node.graph.erase_node(node)


def _turns_all(program: Program, source: fx.Node, cos: fx.Node) -> bool:
    spec = program.spec(source)
    return spec.rank < MOST_DIMS and program.spec(cos).shape[-1] == spec.shape[-1]


def _swapped(program: Program, source: fx.Node, node: fx.Node) -> fx.Node | None:
    """The tensor with the halves of its last dimension swapped; None where a shape has sizes that nothing tells."""
    shape = program.spec(source).shape
    assert isinstance(shape[-1], int)
    halves = (*shape[:-1], 2, shape[-1] // 2)
    apart, joined = View.of(shape).reshape(halves), View.of(halves).reshape(shape)
    if apart is None or joined is None or (pair := emit(program, source, apart, like=node)) is None:
        return None
    flipped = call(node.graph, aten.flip.default, pair, [-2], like=node)
    return emit(program, flipped, joined, like=node)
