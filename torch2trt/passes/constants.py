"""What depends on weights and constants alone."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.devices import placed
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import leading_to


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
    needed = leading_to([node])
    made_by = {item: yielded[str(item.target)] for item in needed if item.op == "placeholder"}
    needed |= leading_to(made_by.values())
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    sources: list[torch.Tensor] = []
    for item in (*weights.graph.graph.nodes, *program.nodes):
        if item in made_by:
            copies[item] = copies[made_by[item]]
        elif item in needed:
            copies[item] = graph.node_copy(item, lambda arg: copies[arg])
            if item.op == "placeholder":
                sources.append(weights.sources[weights.inputs[str(item.target)]].detach().cpu())
    graph.output(copies[node])
    module = placed(fx.GraphModule({}, graph), torch.device("cpu"))
    with torch.no_grad():
        return module(*sources)  # type: ignore[no-any-return]
