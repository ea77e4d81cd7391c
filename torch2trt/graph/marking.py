"""A Program that returns some of its intermediate values beside, or in place of, its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import fx
from torch.utils import _pytree as pytree

from torch2trt.graph.contract import check
from torch2trt.graph.module import graph_module
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Signature, TensorLeaf


def marked(program: Program, nodes: Sequence[fx.Node]) -> Program:
    """A Program of its own that computes the same and returns the values of these nodes, as a tuple.

    Weights are shared. It is called with the tensor inputs alone, the state among them, by position.

    Args:
        nodes: distinct, and each yields one tensor; the outputs are called as :func:`output_name` says.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(program.graph.graph, copies)
    graph.output(tuple(copies[node] for node in nodes))
    inputs = program.signature.tensor_inputs
    signature = Signature(
        inputs=tuple(inputs),
        outputs=tuple(TensorLeaf(output_name(node), program.spec(node)) for node in nodes),
        in_spec=pytree.tree_structure(((0,) * len(inputs), {})),
        out_spec=pytree.tree_structure((0,) * len(nodes)),
        dims=program.signature.dims,
        profiles=program.signature.profiles,
    )
    found = dataclasses.replace(program, graph=graph_module(graph), signature=signature, state={})
    check(found, "marking")
    return found


def output_name(node: fx.Node) -> str:
    """The name that a marked node has as an output; no input has one like it, because these are identifiers."""
    return f"{node.name}.value"
