"""A partitioned Program as a Program for each segment: together they compute what the whole does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy
from torch import fx
from torch.utils import _pytree as pytree

from torch2trt.graph.contract import check
from torch2trt.graph.module import graph_module
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Signature, TensorLeaf
from torch2trt.graph.weights import WeightsGraph
from torch2trt.partition.partitioner import Partition, is_engine
from torch2trt.sizes import TensorSpec


@dataclass(frozen=True)
class Segment:
    """Calls that run together."""

    program: Program
    """Its inputs and outputs have the names of the whole Program's nodes."""
    is_engine: bool


def split(program: Program, partition: Partition) -> list[Segment]:
    """The segments in the order of running.

    A segment's inputs are inputs of the whole and results of earlier segments. It has the weights that it reads and
    computes anew what depends on constants and sizes alone.
    """
    order = {node: number for number, node in enumerate(program.nodes)}
    members: dict[int, list[fx.Node]] = {}
    for node in program.calls:
        if node in partition.phases:
            members.setdefault(partition.phases[node], []).append(node)
    drafts = [_Draft(program, partition, phase, members[phase], order) for phase in sorted(members)]
    wanted = set(program.output_node.all_input_nodes).union(*(draft.inputs for draft in drafts))
    return [
        Segment(draft.program(wanted, f"{program.name}[{number}]"), is_engine(draft.phase))
        for number, draft in enumerate(drafts)
    ]


def value_of_outputs(program: Program) -> dict[str, str]:
    """The node that each output of the whole is, by the output's name."""
    nodes = program.output_node.args[0]
    return {name: node.name for name, node in zip(program.output_names, nodes, strict=True)}  # type: ignore[arg-type]


class _Draft:
    """One segment: its calls, and what they need from elsewhere."""

    def __init__(
        self, whole: Program, partition: Partition, phase: int, calls: list[fx.Node], order: dict[fx.Node, int]
    ) -> None:
        self.whole = whole
        self.phase = phase
        self.calls = calls
        self._order = order
        own = set(calls)
        inputs: set[fx.Node] = set()
        weights: set[fx.Node] = set()
        copied: set[fx.Node] = set()
        all_weights = set(whole.weight_placeholders)
        pending = [argument for node in calls for argument in node.all_input_nodes]
        while pending:
            node = pending.pop()
            if node in own or node in copied:
                continue
            if node in all_weights:
                weights.add(node)
            elif node.op == "placeholder" or node in partition.phases:
                inputs.add(node)
            else:
                # A size, or what depends on constants and sizes alone.
                copied.add(node)
                pending += node.all_input_nodes
        if is_engine(phase):
            inputs |= _carriers(whole, {*calls, *copied}, inputs)
        self.inputs = self._sorted(inputs)
        self._weights = self._sorted(weights)
        self._copied = copied

    def _sorted(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        return sorted(nodes, key=self._order.__getitem__)

    def program(self, wanted: set[fx.Node], name: str) -> Program:
        """The segment as a Program that returns what is wanted of it."""
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        for node in (*self.inputs, *self._weights):
            # An input of the whole may have another name as a node than as an input.
            values[node] = graph.placeholder(str(node.target) if node.op == "placeholder" else node.name)
            values[node].meta = dict(node.meta)
        for node in self._sorted({*self.calls, *self._copied}):
            values[node] = graph.node_copy(node, values.__getitem__)
        returned = [node for node in self.calls if node in wanted]
        graph.output(tuple(values[node] for node in returned))
        whole = self.whole
        # What the caller gives lies as it does for the whole; between segments all is in its own order.
        orders = {leaf.name: leaf.order for leaf in whole.signature.tensor_inputs}
        names = [str(values[node].target) for node in self.inputs]
        inputs = tuple(
            TensorLeaf(name, whole.spec(node), orders.get(name, ()))
            for name, node in zip(names, self.inputs, strict=True)
        )
        outputs = tuple(TensorLeaf(node.name, whole.spec(node)) for node in returned)
        own = whole.signature.over(_symbols(leaf.spec for leaf in inputs))
        made = Program(
            name,
            graph_module(graph),
            _weights(whole.weights, [str(node.target) for node in self._weights]),
            Signature(
                inputs,
                outputs,
                in_spec=pytree.tree_structure((0,) * len(inputs)),
                out_spec=pytree.tree_structure((0,) * len(outputs)),
                dims=own.dims,
                profiles=own.profiles,
            ),
            dict(whole.dim_names),
            captured_nodes=len(self.calls),
        )
        check(made, "partitioning")
        return made


def _carriers(whole: Program, nodes: set[fx.Node], inputs: set[fx.Node]) -> set[fx.Node]:
    """Inputs of the whole whose shapes tell an engine the dynamic sizes that its own inputs' shapes do not."""
    known = _plain(whole.spec(node) for node in inputs)
    missing: set[str] = set()
    for node in nodes:
        if whole.is_size(node):
            size = whole.size(node)
            missing |= set() if isinstance(size, int) else {symbol.name for symbol in size.free_symbols}
        else:
            result = whole.result(node)
            missing |= _symbols(
                spec for spec in (result if isinstance(result, list) else [result]) if isinstance(spec, TensorSpec)
            )
    found: set[fx.Node] = set()
    for node in whole.input_placeholders:
        if news := (missing - known) & _plain([whole.spec(node)]):
            found.add(node)
            known |= news
    return found


def _symbols(specs: Iterable[TensorSpec]) -> set[str]:
    """The names of the dynamic sizes in shapes."""
    sizes = [size for spec in specs for size in spec.shape if not isinstance(size, int)]
    return {symbol.name for size in sizes for symbol in size.free_symbols}


def _plain(specs: Iterable[TensorSpec]) -> set[str]:
    """The names of the dynamic sizes that are a dimension by themselves."""
    return {size.name for spec in specs for size in spec.shape if isinstance(size, sympy.Symbol)}


def _weights(weights: WeightsGraph, names: list[str]) -> WeightsGraph:
    """The part of a weights graph that yields some weights."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(weights.graph.graph, copies)
    graph.output(returned)
    part = WeightsGraph(weights.sources, graph_module(graph), dict(weights.inputs), weights.outputs)
    part.keep_outputs(names)
    return part
