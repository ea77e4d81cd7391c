"""Graphs from Dynamo: what among their arguments is a weight, a size or an input, and modules that capture takes."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

import sympy
import torch
from torch import fx
from torch.export import Dim
from torch.fx.node import map_aggregate
from torch.utils._device import _device_constructors

from torch2trt.graph.rewrite import leading_to

# Beyond it, a bound on a size comes from an index type or an allocation, and not from the model or its user.
_LARGEST = 1 << 16
# How Dynamo's paths of modules begin: L['self'].layer1
_DYNAMO_ROOT = re.compile(r"^\w+\['\w+'\]\.?")


class Region:
    """One graph that Dynamo hands to a backend: torch functions, with weights and sizes among its arguments.

    Its tensor results are computed by a module that :meth:`module` makes. What is no new tensor (a view of an argument
    or of another result, a size, None) stays in torch, in :attr:`rest`, so that memory is shared as in eager.

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
        held = {_storage(node) for node in self._placeholders} - {None}
        self.written = tuple(
            position for position in (*self.weights, *self.inputs) if _is_written(self._placeholders[position])
        )
        """Positions of the arguments that the graph writes into."""
        self._returned: Sequence[Any] = graph.graph.output_node().args[0]  # type: ignore[assignment]
        new = [value for value in self._returned if _is_tensor(value) and _storage(value) not in held]
        storages = [_storage(node) for node in dict.fromkeys(new)]
        shared = {storage for storage in storages if storage is not None and storages.count(storage) > 1}
        # Results that are views of each other become what they are views of.
        owners = {node: _owner(node) if _storage(node) in shared else node for node in new}
        self.made = tuple(dict.fromkeys(owners.values()))
        """What the module from :meth:`module` yields: new tensors."""
        self.devices = tuple(node.meta["example_value"].device for node in self.made)
        """Where the graph leaves each of them."""
        self.refusal = self._why_not([owner for node, owner in owners.items() if owner is not node])
        """Why the whole graph has to run in torch, or empty."""
        self.rest = None if list(self.made) == list(self._returned) else self._remaking()
        """The graph from its arguments and what is made to all results; None where they are what is made."""

    @property
    def has_ranges(self) -> bool:
        """Whether a dimension of an input has a range of sizes."""
        return bool(self._ranges)

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest of each size that has a range."""
        return dict(self._ranges)

    def fix_sizes(self) -> None:
        """From now on, make modules for one size of each dimension."""
        self._set_ranges({})

    def constants(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The sizes and numbers of a call that a module from :meth:`module` has built in."""
        sizes = [args[position].shape[axis] for position, axis in self._fixed_sizes]
        return (*sizes, *[_number(args[position]) for position in self._fixed_numbers])

    def merge(self, made: Sequence[torch.Tensor], args: Sequence[Any]) -> Sequence[Any]:
        """All results, in order, from those that a module computed and the call's arguments."""
        return made if self.rest is None else self.rest(*args, *made)

    def overlap(self, args: Sequence[Any]) -> bool:
        """Whether a call writes into memory that it has as another argument too."""
        where = {position: args[position].untyped_storage().data_ptr() for position in (*self.weights, *self.inputs)}
        places = [place for place in where.values() if place]
        return any(places.count(where[position]) > 1 for position in self.written)

    def device(self, args: Sequence[Any]) -> torch.device:
        """Where an engine would run: on the first GPU that a tensor of a call is on, else on the CPU."""
        devices: list[torch.device] = [args[position].device for position in (*self.inputs, *self.weights)]
        return next((device for device in devices if device.type != "cpu"), devices[0])

    def module(self, args: Sequence[Any]) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...], tuple[Any, ...]]:
        """The graph as a module with the weights of this call inside, its inputs, and their dynamic dimensions.

        All of it is on one device, also where the graph moves tensors from one to another.

        Returns:
            The module, which yields the tuple of :attr:`made`; its arguments for this call; and for each of them
            a ``Dim`` by axis, as ``torch.export.export`` takes it.
        """
        graph, device = fx.Graph(), self.device(args)
        attributes: dict[str, Any] = {}
        copies: dict[fx.Node, Any] = {}
        for position in self.inputs:
            node = self._placeholders[position]
            copies[node] = graph.placeholder(node.name)
        for position in self.weights:
            node = self._placeholders[position]
            attributes[node.name] = args[position].detach().to(device)
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
                graph.output(tuple(copies[value] for value in self.made))
            elif node.op == "call_method" and node.target == "item" and not isinstance(copies[node.args[0]], fx.Node):
                copies[node] = copies[node.args[0]]
            elif node.op != "placeholder":
                if node.op in ("get_attr", "call_module"):
                    held = operator.attrgetter(str(node.target))(self.graph)
                    attributes[str(node.target)] = held.to(device) if isinstance(held, torch.Tensor) else held
                copies[node] = _on(device, graph.node_copy(node, lambda argument: copies[argument]))
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
        return module.eval(), tuple(args[position].to(device) for position in self.inputs), dynamic

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

    def _remaking(self) -> fx.GraphModule:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        made = set(self.made)
        for node in self._placeholders:
            copies[node] = graph.node_copy(node)
        for node in self.made:
            copies[node] = graph.placeholder(f"made_{node.name}")
        for node in self.graph.graph.nodes:
            if node.op not in ("placeholder", "output") and node not in made:
                copies[node] = graph.node_copy(node, lambda argument: copies[argument])
        graph.output(fx.map_arg(tuple(self._returned), lambda node: copies[node]))
        needed = leading_to(graph.output_node().all_input_nodes)
        for node in reversed(graph.nodes):
            if node.op not in ("placeholder", "output") and node not in needed:
                graph.erase_node(node)
        return fx.GraphModule(self.graph, graph)

    def _why_not(self, viewed: Sequence[fx.Node]) -> str:
        written = {_storage(self._placeholders[position]) for position in self.written}
        if any(_is_tensor(value) and _storage(value) in written for value in self._returned):
            return "it hands back what it writes into"
        if any(_is_written(owner) or not owner.meta["example_value"].is_contiguous() for owner in viewed):
            return "its results share memory that it writes into or that is not contiguous"
        return ""


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


def _is_tensor(value: Any) -> TypeGuard[fx.Node]:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("example_value"), torch.Tensor)


def _is_written(node: fx.Node) -> bool:
    # Dynamo's own tensors start without a version.
    return bool(node.meta["example_value"]._version)


def _owner(node: fx.Node) -> fx.Node:
    """The tensor of a graph that a view is of, however many views lie between them."""
    while True:
        # A list of views, as of torch.split, lies between them too.
        sources = [found for each in node.all_input_nodes for found in (each, *each.all_input_nodes)]
        source = next((each for each in sources if _is_tensor(each) and _storage(each) == _storage(node)), None)
        if source is None:
            return node
        node = source


def _on(device: torch.device, node: fx.Node) -> fx.Node:
    """A call, with the devices among its arguments replaced by another."""

    def replaced(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), replaced)
    # A function that makes a tensor from none makes it on the CPU, where it is not told otherwise.
    makes = node.op == "call_function" and node.target in _device_constructors() and "device" not in node.kwargs
    if makes or isinstance(node.kwargs.get("device"), str | int):
        node.kwargs = {**node.kwargs, "device": device}
    if node.op == "call_method" and node.target in ("cpu", "cuda"):
        node.target, node.args, node.kwargs = "to", (node.args[0], device), {}
    elif node.op == "call_method" and node.target == "to" and any(isinstance(each, str) for each in node.args[1:]):
        node.args = tuple(device if isinstance(each, str) else each for each in node.args)
    return node


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
