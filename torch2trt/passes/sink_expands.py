"""Repeated elements computed once: ``expand`` after what can do without it, or nowhere."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.pointwise import is_pointwise
from torch2trt.settings import Settings

aten = torch.ops.aten


def sink_expands(program: Program, settings: Settings) -> None:
    """Let pointwise operators broadcast by themselves, and expand their result where that is not enough.

    So masks and biases stay as small as they are made, and what is made of weights is hoisted before it grows.
    """
    graph = program.graph.graph
    for node in program.calls:
        if not is_pointwise(node) or IN_TORCH in node.meta:
            continue
        expands = [source for source in node.all_input_nodes if _is_expand(program, source)]
        with graph.inserting_before(node):
            replacement = _sunk(program, node, expands) if expands else None
        if replacement is not None:
            node.replace_all_uses_with(replacement)
            graph.erase_node(node)
    erase_unused(graph)


def _is_expand(program: Program, node: fx.Node) -> bool:
    if node.target is not aten.expand.default or IN_TORCH in node.meta:
        return False
    # A single number has less say than tensors in what dtype a result has.
    return program.spec(bind(node)["input"]).rank > 0


def _with_small(node: fx.Node, expands: list[fx.Node]) -> fx.Node:
    """The call on what these expand."""
    arguments = node.args, node.kwargs
    args, kwargs = fx.map_arg(arguments, lambda arg: bind(arg)["input"] if arg in expands else arg)
    return call(node.graph, node.target, *args, like=node, **kwargs)


def _sunk(program: Program, node: fx.Node, expands: list[fx.Node]) -> fx.Node | None:
    """The call on what is not expanded; with one tensor among its arguments, its result is expanded instead."""
    spec = program.spec(node)
    for chosen in (expands, *([expand] for expand in expands if len(expands) > 1)):
        small = _with_small(node, chosen)
        found = program.spec(small)
        if found == spec:
            return small
        if len(node.all_input_nodes) == 1 and found.dtype == spec.dtype:
            return call(node.graph, aten.expand.default, small, bind(expands[0])["size"], like=node)
        node.graph.erase_node(small)
    return None
