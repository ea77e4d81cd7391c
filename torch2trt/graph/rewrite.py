"""What passes use to change a graph: nodes inserted with their fake values and their provenance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from torch2trt.graph import fake_values
from torch2trt.graph.kernels import QUANTILES, shapes_of_quantiles
from torch2trt.graph.program import provenance
from torch2trt.graph.schema import name_of

IN_TORCH = "in_torch"
"""Marks, in a node's ``meta``, calls that are to run in torch, with the reason: nothing is fused with them."""

FOREIGN = "foreign"
"""Marks, in a node's ``meta``, calls of operators that torch computes: whatever the precision, in float32."""

PROVENANCE = ("nn_module_stack", "stack_trace", IN_TORCH)
"""What a node's ``meta`` says of where it comes from, for those in its place to inherit."""


def call(graph: fx.Graph, target: Any, *args: Any, like: fx.Node, known: Any = None, **kwargs: Any) -> fx.Node:
    """Insert an operator call at the graph's insertion point.

    Args:
        target: the operator overload.
        like: the node whose place in the user's module and source the new one inherits.
        known: its fake value, where there is no need to compute it.
    """
    node = graph.call_function(target, args, kwargs)
    for key in PROVENANCE:
        if key in like.meta:
            node.meta[key] = like.meta[key]
    if known is None:
        refresh(node)
    else:
        node.meta["val"] = known
    return node


def refresh(node: fx.Node) -> None:
    """Compute a call's fake value anew, after its arguments changed."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
    mode = _mode_of(node.all_input_nodes) or _mode_of(other for other in node.graph.nodes if other.op == "placeholder")
    known = fake_values.Call(mode, node.target, args, kwargs)
    value = known.result()
    if value is None:
        value = _computed(node, mode, args, kwargs)
        known.keep(value)
    node.meta["val"] = value
    node.meta.pop("tensor_meta", None)


def _computed(node: fx.Node, mode: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    quantiles = shapes_of_quantiles() if node.target in QUANTILES else contextlib.nullcontext()
    # Composite operators written in C++ know no symbolic sizes, their counterparts in Python do.
    with mode, torch.no_grad(), enable_python_dispatcher(), quantiles:
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        before = node.meta.get("val", value)
        static = _is_static(before) and _is_static(value)
        if not static and free_unbacked_symbols(value) != free_unbacked_symbols(before):
            # Sizes that depend on data have new symbols each time: keep the ones that the graph knows.
            value = pytree.tree_map(_with_dtype, before, value)
        return value


def _is_static(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value._has_symbolic_sizes_strides


def _with_dtype(before: Any, like: Any) -> Any:
    return before.to(like.dtype) if isinstance(before, torch.Tensor) else before


def _mode_of(nodes: Iterable[fx.Node]) -> Any:
    # Not whichever is active: a graph's values are of one mode.
    for node in nodes:
        value = node.meta.get("val")
        leaves = [value] if isinstance(value, torch.Tensor) else pytree.tree_leaves(value)
        found = next((leaf for leaf in leaves if isinstance(leaf, FakeTensor)), None)
        if found is not None:
            return found.fake_mode
    return None


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses this one and may be fused with it, or None when there are none or several."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return None if IN_TORCH in node.meta or IN_TORCH in user.meta else user


def replace_chain(first: fx.Node, last: fx.Node, replacement: fx.Node) -> None:
    """Put a node in the place of a chain in which each is the only user of the one before."""
    last.replace_all_uses_with(replacement)
    nodes = [first]
    while nodes[-1] is not last:
        following = only_user(nodes[-1])
        assert following is not None
        nodes.append(following)
    for node in reversed(nodes):
        node.graph.erase_node(node)


def leading_to(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def erase_unused(graph: fx.Graph) -> None:
    """Drop the calls that nothing uses, and whatever led only to them."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def asked_for(node: fx.Node, patterns: Sequence[str]) -> str | None:
    """Why the user wants a call in torch, or None.

    Args:
        patterns: operators, with or without their overloads, and paths of modules, whose children count too.
    """
    if not patterns:
        return None
    operator, module = name_of(node.target), provenance(node)[0]
    for pattern in patterns:
        if pattern in (operator, operator.rpartition(".")[0], module) or module.startswith(f"{pattern}."):
            return f"run_in_torch names {pattern!r}"
    return None
