"""Graphs from Dynamo: what among their arguments is a weight, a size or an input, and modules that capture takes."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import Dim

# Beyond it, a bound on a size comes from an index type or an allocation, and not from the model or its user.
_LARGEST = 1 << 16
# How Dynamo's paths of modules begin: L['self'].layer1
_DYNAMO_ROOT = re.compile(r"^\w+\['\w+'\]\.?")


class Region:
    """One graph that Dynamo hands to a backend: torch functions, with weights and sizes among its arguments.

    Its tensor results are computed by a module that :meth:`module` makes. What is no new tensor (a view of an
    argument, a size, None) stays in torch, in :attr:`rest`.

    Args:
        graph: as the backend gets it.
        name: what to call it; unset: by the number that Dynamo gives it in its own logs.
    """

    def __init__(self, graph: fx.GraphModule, name: str | None = None) -> None:
        self.graph = graph
        self.name = name or f"graph {graph.meta.get('dynamo_compile_id', '')}".strip()
        self._placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        kinds = [_kind(node) for node in self._placeholders]
        self.weights = tuple(position for position, kind in enumerate(kinds) if kind == "weight")
        """Positions of the arguments that are parameters, buffers and other tensors held by a module."""
        self.inputs = tuple(position for position, kind in enumerate(kinds) if kind == "input")
        """Positions of the tensors that differ from call to call."""
        self._numbers = [position for position, kind in enumerate(kinds) if kind == "number"]
        self._symbols = {
            position: [(axis, size.node.expr) for axis, size in enumerate(shape) if isinstance(size, torch.SymInt)]
            for position, shape in ((p, self._placeholders[p].meta["example_value"].shape) for p in self.inputs)
        }
        self._set_ranges(self._bounded_symbols())
        held = {_storage(node) for node in self._placeholders}
        self._returned: Sequence[Any] = graph.graph.output_node().args[0]  # type: ignore[assignment]
        self.computed = tuple(
            position
            for position, value in enumerate(self._returned)
            if isinstance(value, fx.Node)
            and isinstance(value.meta.get("example_value"), torch.Tensor)
            and _storage(value) not in held
        )
        """Positions of the results that are new tensors."""
        others = [position for position in range(len(self._returned)) if position not in self.computed]
        self.rest = self._returning(others) if others else None
        """The graph with the other results alone; None where there are none."""
        self._others = others

    @property
    def has_ranges(self) -> bool:
        """Whether a dimension of an input has a range of sizes."""
        return bool(self._ranges)

    def fix_sizes(self) -> None:
        """From now on, make modules for one size of each dimension."""
        self._set_ranges({})

    def constants(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The sizes and numbers of a call that a module from :meth:`module` has built in."""
        sizes = [args[position].shape[axis] for position, axis in self._fixed_sizes]
        return (*sizes, *[_number(args[position]) for position in self._fixed_numbers])

    def merge(self, computed: Sequence[torch.Tensor], args: Sequence[Any]) -> list[Any]:
        """All results, in order, from those that a module computed and the call's arguments."""
        if self.rest is None:
            return list(computed)
        results: list[Any] = [None] * len(self._returned)
        for position, value in zip(self.computed, computed, strict=True):
            results[position] = value
        for position, value in zip(self._others, self.rest(*args), strict=True):
            results[position] = value
        return results

    def module(self, args: Sequence[Any]) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...], tuple[Any, ...]]:
        """The graph as a module with the weights of this call inside, its inputs, and their dynamic dimensions.

        Returns:
            The module, which yields the tuple of :attr:`computed`; its arguments for this call; and for each of them
            a ``Dim`` by axis, as ``torch.export.export`` takes it.
        """
        graph = fx.Graph()
        attributes: dict[str, Any] = {}
        copies: dict[fx.Node, Any] = {}
        for position in self.inputs:
            node = self._placeholders[position]
            copies[node] = graph.placeholder(node.name)
        for position in self.weights:
            node = self._placeholders[position]
            attributes[node.name] = args[position].detach()
            copies[node] = graph.get_attr(node.name)
        places = {
            size: (copies[self._placeholders[position]], axis)
            for position, sizes in self._symbols.items()
            for axis, size in sizes
        }
        for position in self._numbers:
            node = self._placeholders[position]
            if position in self._fixed_numbers:
                copies[node] = _number(args[position])
            else:
                copies[node] = graph.call_method("size", places[_symbol(node)])
        for node in self.graph.graph.nodes:
            if node.op == "output":
                returned = [self._returned[position] for position in self.computed]
                graph.output(tuple(copies[value] for value in returned))
            elif node.op == "call_method" and node.target == "item" and not isinstance(copies[node.args[0]], fx.Node):
                copies[node] = copies[node.args[0]]
            elif node.op != "placeholder":
                if node.op in ("get_attr", "call_module"):
                    attributes[str(node.target)] = operator.attrgetter(str(node.target))(self.graph)
                copies[node] = graph.node_copy(node, lambda argument: copies[argument])
                copies[node].meta["nn_module_stack"] = {
                    key: (_DYNAMO_ROOT.sub("", path), kind)
                    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items()
                }
        module = fx.GraphModule(attributes, graph)
        dims = {name: Dim(name, min=low, max=high) for name, (low, high) in self._ranges.items()}
        dynamic = tuple(
            {axis: dims[str(size)] for axis, size in self._symbols[position] if str(size) in dims}
            for position in self.inputs
        )
        return module.eval(), tuple(args[position] for position in self.inputs), dynamic

    def _bounded_symbols(self) -> dict[str, tuple[int, int]]:
        """The sizes that may differ from call to call within a range that an engine can be tuned for."""
        ranges: dict[str, tuple[int, int]] = {}
        compound: set[str] = set()
        for position in self.inputs:
            for size in self._placeholders[position].meta["example_value"].shape:
                if not isinstance(size, torch.SymInt):
                    continue
                if not isinstance(size.node.expr, sympy.Symbol):
                    compound |= {str(part) for part in size.node.expr.free_symbols}
                    continue
                assert size.node.shape_env is not None
                bounds = size.node.shape_env.bound_sympy(size.node.expr)
                if bounds.upper.is_finite and bounds.lower < bounds.upper <= _LARGEST:
                    ranges[str(size)] = int(bounds.lower), int(bounds.upper)
        return {name: span for name, span in ranges.items() if name not in compound}

    def _set_ranges(self, ranges: dict[str, tuple[int, int]]) -> None:
        self._ranges = ranges
        self._fixed_sizes = [
            (position, axis)
            for position, sizes in self._symbols.items()
            for axis, size in sizes
            if str(size) not in ranges
        ]
        self._fixed_numbers = [
            position for position in self._numbers if str(_symbol(self._placeholders[position])) not in ranges
        ]

    def _returning(self, positions: Sequence[int]) -> fx.GraphModule:
        """The graph with some of its results."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.graph.graph.nodes:
            if node.op != "output":
                copies[node] = graph.node_copy(node, lambda argument: copies[argument])
        returned = tuple(self._returned[position] for position in positions)
        graph.output(fx.map_arg(returned, lambda node: copies[node]))
        graph.eliminate_dead_code()
        return fx.GraphModule(self.graph, graph)


def _kind(node: fx.Node) -> str:
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor):
        return "number"
    if (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type"):
        return "weight"
    # Dynamo wraps a float that differs from call to call into a tensor, and unwraps it first thing.
    if value.dim() == 0 and node.users and all(user.target == "item" for user in node.users):
        return "number"
    return "input"


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def _symbol(node: fx.Node) -> sympy.Expr | None:
    value = node.meta.get("example_value")
    return value.node.expr if isinstance(value, torch.SymInt) else None


def _storage(node: fx.Node) -> int | None:
    """What two nodes have in common when they share memory."""
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    return int(value.untyped_storage()._cdata)
