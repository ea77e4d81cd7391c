"""What holds for a Program after each stage; checked after every pass, in every compilation."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from torch2trt.errors import ContractError
from torch2trt.graph.program import Program
from torch2trt.graph.schema import name_of
from torch2trt.sizes import DimRange, TensorSpec, are_same

_VALUES = frozenset({"val", "spec", "size"})
"""Where a node's ``meta`` says what it yields."""


def check(program: Program, stage: str) -> None:
    """Check a Program's invariants.

    * Placeholders are the tensor inputs, in the signature's order, then the weights; then come operator calls.
    * Every call is a functional operator overload, ``getitem``, or arithmetic on sizes, and knows what it yields.
    * The output is the tuple of the signature's distinct tensor outputs.
    * The weights graph yields exactly the weights that the main graph reads.

    Raises:
        ContractError: names the stage and what does not hold.
    """

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise ContractError(what, subject=f"after {stage}")

    graph = program.graph.graph
    placeholders = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    inputs = [leaf.name for leaf in program.signature.tensor_inputs]
    require(placeholders[: len(inputs)] == inputs, f"the first placeholders are {placeholders[: len(inputs)]}")
    weights = placeholders[len(inputs) :]
    require(
        sorted(weights) == sorted(program.weights.outputs),
        f"the main graph reads {sorted(weights)[:5]}…, the weights graph yields {sorted(program.weights.outputs)[:5]}…",
    )
    for each in (graph, program.weights.graph.graph):
        if not _is_in_order(each):
            each.lint()
        for node in each.nodes:
            if problem := _problem(node):
                raise ContractError(problem, subject=f"after {stage}")
    returned = program.output_node.args[0]
    require(
        isinstance(returned, tuple) and all(isinstance(node, fx.Node) for node in returned),
        "the output is no tuple of nodes",
    )
    require(len(returned) == len(program.output_names), "the output has another length than the signature")  # type: ignore[arg-type]
    for node, name in zip(returned, program.output_names, strict=True):  # type: ignore[arg-type]
        wanted = next(leaf.spec for leaf in program.signature.tensor_outputs if leaf.name == name)
        found = program.spec(node)
        # The words take longer than the look.
        if found != wanted and not _are_same(found, wanted, program.signature.dims):
            raise ContractError(f"output {name} is {found}, the signature says {wanted}", subject=f"after {stage}")


def _are_same(found: TensorSpec, wanted: TensorSpec, ranges: Mapping[str, DimRange]) -> bool:
    if (found.dtype, found.rank) != (wanted.dtype, wanted.rank):
        return False
    return all(are_same(one, other, ranges) for one, other in zip(found.shape, wanted.shape, strict=True))


def _is_in_order(graph: fx.Graph) -> bool:
    """Whether fx's own check, which says what is wrong, and takes several times as long, finds nothing."""
    seen: set[fx.Node] = set()
    names: set[str] = set()
    for node in graph.nodes:
        if node.graph is not graph or node.name in names or not seen.issuperset(node.all_input_nodes):
            return False
        seen.add(node)
        names.add(node.name)
    return True


def _problem(node: fx.Node) -> str | None:
    if node.op != "call_function":
        return None if node.op in ("placeholder", "output") else f"{node.format_node()} is a {node.op}"
    if not is_functional(node.target):
        return f"{name_of(node.target)} is no functional operator"
    if _VALUES.isdisjoint(node.meta):
        return f"{node} has no value"
    return None


def is_functional(target: Any) -> bool:
    """Whether a graph may call this: an operator that writes nowhere, ``getitem``, or arithmetic on sizes."""
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable
    module = getattr(target, "__module__", "")
    return target is operator.getitem or module in (
        "_operator",
        "torch",
        "math",
        "torch.fx.experimental.sym_node",
    )
