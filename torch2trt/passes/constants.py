"""What depends on weights and constants alone."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.devices import placed
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


def value_of(program: Program, node: fx.Node) -> torch.Tensor:
    """The value of one of :func:`constants`, on the CPU; only what leads to it is computed."""
    weights = program.weights
    yielded = dict(zip(weights.outputs, weights.graph.graph.output_node().args[0], strict=True))  # type: ignore[arg-type]
    needed: set[fx.Node] = set()
    pending = [node]
    while pending:
        item = pending.pop()
        if item not in needed:
            needed.add(item)
            own = item.op == "placeholder" and item.graph is program.graph.graph
            pending += [yielded[str(item.target)]] if own else item.all_input_nodes
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for item in (*weights.graph.graph.nodes, *program.nodes):
        if item in needed:
            own = item.op == "placeholder" and item.graph is program.graph.graph
            copies[item] = copies[yielded[str(item.target)]] if own else graph.node_copy(item, lambda arg: copies[arg])
    graph.output(copies[node])
    names = [str(item.target) for item in weights.graph.graph.nodes if item.op == "placeholder" and item in needed]
    sources = [weights.sources[weights.inputs[name]].detach().cpu() for name in names]
    module = placed(fx.GraphModule({}, graph), torch.device("cpu"))
    with torch.no_grad():
        return module(*sources)  # type: ignore[no-any-return]
