"""Decompositions of single calls, traced each on its own, in the place of the calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from torch2trt.frontend.size_nodes import SizeNodes
from torch2trt.graph.rewrite import PROVENANCE

Table = Mapping[Any, Callable[..., Any]]

_SIZE = torch.ops.aten.sym_size.int


def splice(graph: fx.Graph, table: Table) -> bool:
    """Put decompositions in the place of the calls of operators that have one in a table.

    A call is traced as ``torch.export`` traces a module: composite operators stay whole, and what is written into is
    written into. Decomposing an exported program as a whole traces all that there is in it twice.

    Args:
        graph: without writes, with fake values in ``meta["val"]``; changed in place.

    Returns:
        Whether it was done. Not so where a decomposition is not made of operators on tensors and sizes alone, checks
        what tensors hold, or yields sizes that depend on it; the graph is as it was then.
    """
    traces: dict[fx.Node, fx.Graph] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in table:
            traced = _traced(node, table)
            if traced is None:
                return False
            traces[node] = traced
    sizes = SizeNodes(graph)
    for node in list(graph.nodes):
        if node in traces:
            _put(graph, node, traces[node], sizes)
        elif isinstance(node.meta.get("val"), torch.SymInt):
            sizes.note(node)
    return True


def _traced(node: fx.Node, table: Table) -> fx.Graph | None:
    """The decomposition of a call as a graph of the values that it reads; None where it is more than a graph."""
    sources = node.all_input_nodes
    values = [source.meta.get("val") for source in sources]
    mode = next((leaf.fake_mode for leaf in pytree.tree_leaves(values) if isinstance(leaf, FakeTensor)), None)
    if mode is None or not all(isinstance(value, torch.Tensor | torch.SymInt) for value in values):
        return None
    # A size that depends on data is another one in each trace.
    if not free_unbacked_symbols(node.meta["val"]) <= free_unbacked_symbols(values):
        return None

    def function(*given: Any) -> Any:
        place = dict(zip(sources, given, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), place.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    with mode, torch.no_grad(), enable_python_dispatcher():
        traced = make_fx(function, decomposition_table=dict(table), pre_dispatch=True)(*values).graph
    traced.eliminate_dead_code()
    return traced if all(map(_is_plain, traced.nodes)) else None


def _is_plain(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.returns) and "val" in node.meta
    return node.target is operator.getitem or getattr(node.target, "__module__", "") in ("_operator", "torch", "math")


def _put(graph: fx.Graph, node: fx.Node, traced: fx.Graph, sizes: SizeNodes) -> None:
    place: dict[fx.Node, Any] = dict(
        zip((each for each in traced.nodes if each.op == "placeholder"), node.all_input_nodes, strict=True)
    )
    inherited = {key: node.meta[key] for key in PROVENANCE if key in node.meta}
    for each in traced.nodes:
        if each.op != "call_function":
            continue
        # What is asked for its shape has one more user, so inputs are.
        if each.target is _SIZE and (made := sizes.size(each.meta["val"])) is not None:
            place[each] = made(node)
            continue
        with graph.inserting_before(node):
            place[each] = graph.node_copy(each, place.__getitem__)
        place[each].meta = {"val": each.meta["val"], **inherited}
    result: Any = fx.map_arg(traced.output_node().args[0], place.__getitem__)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(result[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)
