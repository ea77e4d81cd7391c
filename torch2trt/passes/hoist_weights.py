"""Move whatever depends on parameters alone into the weights graph."""

from __future__ import annotations

import math

from torch import fx

from torch2trt.graph.module import graph_module
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import leading_to
from torch2trt.graph.weights import WeightsGraph
from torch2trt.passes.constants import constants
from torch2trt.settings import Settings

# A result this many times larger than what it is made of stays in the engine, where it costs no memory, unless it is
# small (in elements), as position biases are that TensorRT would look up in every run.
_GROWTH_LIMIT = 1.5
_SMALL = 1 << 20


def hoist_weights(program: Program, settings: Settings) -> None:
    """Split the graph: calls on weights and constants alone go to the weights graph, their results become weights."""
    hoisted = _hoistable(program)
    if not hoisted and all(node.users for node in program.weight_placeholders):
        return
    members = set(hoisted)
    # Its placeholders are those of the main graph as the earlier weights graph yields them.
    frontier = [node for node in hoisted if not members.issuperset(node.users)]
    for node in program.weight_placeholders:
        if not members.issuperset(node.users):
            frontier.append(node)
    old = program.weights
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in old.graph.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda arg: copies[arg])
    yielded = dict(zip(old.outputs, old.graph.graph.output_node().args[0], strict=True))  # type: ignore[arg-type]
    for node in program.weight_placeholders:
        copies[node] = copies[yielded[str(node.target)]]
    for node in hoisted:
        copies[node] = graph.node_copy(node, lambda arg: copies[arg])
    graph.output(tuple(copies[node] for node in frontier))
    main = program.graph.graph
    names: list[str] = []
    taken = {node.name for node in main.nodes} | {str(node.target) for node in main.nodes if node.op == "placeholder"}
    anchor = program.calls[0] if program.calls else main.output_node()
    for node in frontier:
        if node.op == "placeholder":
            names.append(str(node.target))
            continue
        with main.inserting_before(anchor):
            weight = main.placeholder(_unused_name(taken, f"w_{node.name}"))
        taken |= {weight.name, str(weight.target)}
        weight.meta = dict(node.meta)
        node.replace_all_uses_with(weight, delete_user_cb=lambda user: user not in members)
        names.append(str(weight.target))
    for node in reversed(hoisted):
        main.erase_node(node)
    kept = set(names)
    for node in program.weight_placeholders:
        if str(node.target) not in kept:
            main.erase_node(node)
    program.weights = WeightsGraph(old.sources, graph_module(graph), dict(old.inputs), tuple(names))
    program.weights.keep_outputs(kept)


def _hoistable(program: Program) -> list[fx.Node]:
    """The calls to hoist, in order."""
    constant = constants(program)
    found = [node for node in program.calls if node in constant]
    returned = set(program.output_node.all_input_nodes)
    weights = set(program.weight_placeholders)
    while True:
        members = set(found)
        kept = [
            node
            for node in found
            if node.users
            and node not in returned
            and all(argument in members or argument in weights for argument in node.all_input_nodes)
            # What grows is computed in the engine, from the small weights it is made of.
            and (all(user in members for user in node.users) or _pays(program, node))
        ]
        if len(kept) == len(found):
            return kept
        found = kept


def _pays(program: Program, node: fx.Node) -> bool:
    result = program.result(node)
    if isinstance(result, list):
        return False  # a weight is one tensor: only the items taken from these can be
    size = math.prod(result.shape)
    if size <= _SMALL:
        return True
    sources = sum(math.prod(program.spec(item).shape) for item in _roots(node))
    return size <= _GROWTH_LIMIT * sources


def _roots(node: fx.Node) -> set[fx.Node]:
    """The weights that a hoistable call is made of."""
    return {item for item in leading_to([node]) if item.op == "placeholder"}


def _unused_name(taken: set[str], name: str) -> str:
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    return candidate
