"""Remove what no output depends on, weights included."""

from __future__ import annotations

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import erase_unused
from torch2trt.settings import Settings


def remove_dead_code(program: Program, settings: Settings) -> None:
    """Drop calls without users, weights that nothing reads, and their part of the weights graph."""
    graph = program.graph.graph
    erase_unused(graph)
    for node in program.weight_placeholders:
        if not node.users:
            graph.erase_node(node)
    program.weights.keep_outputs({str(node.target) for node in program.weight_placeholders})
