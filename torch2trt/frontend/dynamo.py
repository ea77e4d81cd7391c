"""Graphs from Dynamo: what among their arguments is a weight, a size or an input, and modules that capture takes."""

from __future__ import annotations

import copy
import operator
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import sympy
import torch
from torch import fx
from torch.export import Dim
from torch.fx.node import map_aggregate
from torch.utils._device import _device_constructors

from torch2trt.frontend.marking import Marks, sizes_of
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.graph.rewrite import leading_to
from torch2trt.graph.signature import Signature
from torch2trt.sizes import DimRange, Size, linear, symbol

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
        self.called: frozenset[str] = frozenset()
        """Names of dimensions that are the caller's."""
        self._marks: list[tuple[int, Marks]] = []
        self._tuned: tuple[dict[str, DimRange], ...] = ()
        bounds = self._bounded_symbols(_LARGEST)
        self._set_ranges(
            {size: symbol(size.name) for size in bounds}, {size.name: each for size, each in bounds.items()}
        )
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
        """The smallest and the largest of each dimension that has a range, by name."""
        return dict(self._ranges)

    @property
    def sizes(self) -> dict[str, tuple[str, Size]]:
        """By Dynamo's names of sizes: the dimension that tells a size, and the size in terms of it."""
        return {each.name: (_linear(size)[0], size) for each, size in self._forms.items()}

    @property
    def profiles(self) -> tuple[dict[str, DimRange], ...]:
        """For what the sizes that have names are to be tuned; empty where none has one."""
        return self._tuned

    def name_sizes(self, args: Sequence[Any], dynamic: DynamicInputs) -> None:
        """Let the sizes that the marks of a call's tensors tell have their ranges and optimization profiles.

        A size that is linear in a name, such as ``2*n + 1``, is told by the dimension of that name; one that is
        computed from names in another way is a dimension of its own, with a range by interval arithmetic. Where Dynamo
        found that a graph holds for fewer sizes, it has those alone.

        Args:
            args: those that the graph was traced with.
            dynamic: the names, of the whole model's inputs.
        """
        self.called = frozenset(dynamic.dims)
        told = self._told(args)
        forms: dict[sympy.Symbol, Size] = {}
        sizes: dict[str, Size] = {}  # of dimensions, in the caller's
        for each, size in told.items():
            if (found := linear(size)) is not None and found[1] > 0:
                forms[each], sizes[found[0].name] = size, found[0]
            else:
                name = f"{each}_" if each.name in dynamic.dims else each.name
                forms[each], sizes[name] = symbol(name), size
        # What has one name is one dimension, within all that Dynamo found.
        spans = {name: dynamic.span(size, dynamic.dims) for name, size in sizes.items()}
        bounds = self._bounded_symbols(None)
        for each, form in forms.items():
            name = _linear(form)[0]
            spans[name] = _solved(spans[name], form, *bounds.get(each, (0, 0)))
        for asked, size in self._marked(args):
            form = asked.xreplace(forms)
            if form != size and (found := linear(form)) is not None and found[0].name in spans:
                # Sizes that the caller tells apart, and Dynamo found that the graph holds for those alone that agree.
                own = dynamic.span(size, dynamic.dims)
                spans[found[0].name] = _solved(spans[found[0].name], form, own.min, own.max)
        fitting = {name: span for name, span in spans.items() if span.min < span.max <= _LARGEST}
        forms = {each: form for each, form in forms.items() if _linear(form)[0] in fitting}
        others = {each: span for each, span in self._bounded_symbols(_LARGEST).items() if each not in told}
        self._set_ranges(
            {**{each: symbol(each.name) for each in others}, **forms},
            {**{each.name: span for each, span in others.items()}, **{name: _ends(fitting[name]) for name in fitting}},
        )
        tuned: list[dict[str, DimRange]] = []
        for profile in dynamic.ranges:
            own_ranges = {
                name: _within(dynamic.span(sizes[name], profile), span.min, span.max) for name, span in fitting.items()
            }
            # Sizes for which there is another graph.
            if own_ranges not in tuned and all(span.min <= span.max for span in own_ranges.values()):
                tuned.append(own_ranges)
        self._tuned = tuple(tuned) if fitting else ()
        self._marks = [
            (place, Marks(axes)) for place, value in enumerate(self._returned) if (axes := _told_sizes(value, told))
        ]

    def _marked(self, args: Sequence[Any]) -> list[tuple[sympy.Expr, Size]]:
        """Sizes of inputs in Dynamo's terms and in the caller's, where marks tell them."""
        return [
            (asked, size)
            for position, sizes in self._symbols.items()
            for axis, asked in sizes
            if (size := sizes_of(args[position]).get(axis)) is not None
        ]

    def _told(self, args: Sequence[Any]) -> dict[sympy.Symbol, Size]:
        """Dynamo's symbols in terms of the caller's names, as marks tell."""
        told: dict[sympy.Symbol, Size] = {}
        marks = sorted(self._marked(args), key=lambda item: not isinstance(item[0], sympy.Symbol))
        for asked, size in marks:
            solved = linear(asked)
            if solved is None or solved[0] in told:
                continue
            root, factor, offset = solved
            if (factor, offset) == (1, 0):
                told[root] = size
                continue
            # Nothing but the double of a size comes in: the size itself is half of what is told.
            half = sympy.expand((size - offset) / factor)
            if linear(half) is not None:
                told[root] = half
        return told

    def mark(self, results: Sequence[Any]) -> None:
        """Mark a call's results, whose sizes are told by those of its arguments."""
        for place, marks in self._marks:
            marks.put(results[place])

    @property
    def marks(self) -> bool:
        """Whether results have sizes that are told."""
        return bool(self._marks)

    def tuned(self, signature: Signature) -> Signature:
        """The signature of a module from :meth:`module`, with the profiles of the sizes that have names."""
        if not self._tuned:
            return signature
        profiles = [
            {
                name: found
                for name, span in profile.items()
                if name in signature.dims
                for found in [_within(span, signature.dims[name].min, signature.dims[name].max)]
            }
            for profile in self._tuned
        ]
        profiles = [profile for profile in profiles if all(span.min <= span.max for span in profile.values())]
        first, *others = profiles or [{}]
        if not others and all((span.min, span.max) == _ends(signature.dims[name]) for name, span in first.items()):
            return replace(signature, dims={**signature.dims, **first})
        return replace(signature, profiles=tuple(profiles))

    def fix_sizes(self) -> None:
        """From now on, make modules for one size of each dimension."""
        self._tuned = ()
        self._set_ranges({}, {})

    def fixed(self) -> Region:
        """The same graph as a region of one size of each dimension."""
        region = copy.copy(self)
        region.fix_sizes()
        return region

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
        for position in self._numbers:
            node = self._placeholders[position]
            if position in self._fixed_numbers:
                copies[node] = _number(args[position])
            else:
                copies[node] = self._size_node(graph, _symbol(node), copies)
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
            {axis: _dim(dims, form) for axis, size in self._symbols[position] if (form := self._form(size)) is not None}
            for position in self.inputs
        )
        return module.eval(), tuple(args[position].to(device) for position in self.inputs), dynamic

    def _form(self, size: sympy.Expr | None) -> Size | None:
        """A size of Dynamo's in terms of a dimension that has a range; None where it is built in."""
        if size is None or not size.free_symbols <= self._forms.keys():
            return None
        form = size.xreplace(self._forms)
        found = linear(form)
        return form if found is not None and found[1] > 0 else None

    def _size_node(self, graph: fx.Graph, size: Any, copies: Mapping[fx.Node, Any]) -> fx.Node:
        """A size of Dynamo's, computed from that of an input."""
        wanted, factor, offset = _linear(size)
        axes = [(position, axis, each) for position, sizes in self._symbols.items() for axis, each in sizes]
        # One that needs no arithmetic, where there is one.
        axes = sorted(axes, key=lambda item: not isinstance(item[2], sympy.Symbol))
        position, axis, known = next(item for item in axes if (found := linear(item[2])) and found[0].name == wanted)
        node = graph.call_method("size", (copies[self._placeholders[position]], axis))
        _, own_factor, own_offset = _linear(known)
        for function, number, nothing in (
            (operator.sub, own_offset, 0),
            (operator.floordiv, own_factor, 1),
            (operator.mul, factor, 1),
            (operator.add, offset, 0),
        ):
            node = node if number == nothing else graph.call_function(function, (node, number))
        return node

    def _bounded_symbols(self, largest: int | None) -> dict[sympy.Symbol, tuple[int, int]]:
        """The sizes that may differ from call to call within a range, of which an engine can be tuned for the largest.

        Args:
            largest: leave out sizes that may be larger; None: none is.
        """
        ranges: dict[sympy.Symbol, tuple[int, int]] = {}
        compound: set[sympy.Symbol] = set()
        for position in self.inputs:
            for size in self._placeholders[position].meta["example_value"].shape:
                if not isinstance(size, torch.SymInt):
                    continue
                found = linear(size.node.expr)
                if found is None or found[1] < 1:
                    compound |= size.node.expr.free_symbols
                    continue
                assert size.node.shape_env is not None
                bounds = size.node.shape_env.bound_sympy(found[0])
                upper = int(bounds.upper) if bounds.upper < sys.maxsize else sys.maxsize
                if bounds.lower < upper and (largest is None or upper <= largest):
                    ranges[found[0]] = int(bounds.lower), upper
        return {each: span for each, span in ranges.items() if each not in compound}

    def _set_ranges(self, forms: dict[sympy.Symbol, Size], ranges: dict[str, tuple[int, int]]) -> None:
        """Let sizes of Dynamo's differ, in terms of dimensions that have these ranges."""
        self._forms, self._ranges = forms, ranges
        self._fixed_sizes = [
            (position, axis)
            for position, sizes in self._symbols.items()
            for axis, size in sizes
            if self._form(size) is None
        ]
        self._fixed_numbers = [
            position for position in self._numbers if self._form(_symbol(self._placeholders[position])) is None
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


def _within(span: DimRange, low: int, high: int) -> DimRange:
    """The part of a range that lies within two sizes; its end is before its begin where there is none."""
    smallest, largest = max(span.min, low), min(span.max, high)
    return DimRange(smallest, max(smallest, min(span.opt, largest)), largest)


def _solved(span: DimRange, form: Size, low: int, high: int) -> DimRange:
    """The part of a dimension's range in which a size, linear in it, lies within two sizes."""
    _, factor, offset = _linear(form)
    return _within(span, -((offset - low) // factor), (high - offset) // factor)


def _linear(size: Size) -> tuple[str, int, int]:
    """The name, factor and offset of a size that is linear in one."""
    found = linear(size)
    assert found is not None
    return found[0].name, found[1], found[2]


def _dim(dims: Mapping[str, Any], form: Size) -> Any:
    name, factor, offset = _linear(form)
    dim = dims[name] if factor == 1 else factor * dims[name]
    return dim + offset if offset > 0 else dim - -offset if offset < 0 else dim


def _ends(span: DimRange) -> tuple[int, int]:
    return span.min, span.max


def _told_sizes(value: Any, known: Mapping[sympy.Symbol, Size]) -> dict[int, Size]:
    """The dynamic axes of a result, with their sizes, where these are computed from known ones."""
    if not _is_tensor(value):
        return {}
    return {
        axis: size.node.expr.xreplace(known)
        for axis, size in enumerate(value.meta["example_value"].shape)
        if isinstance(size, torch.SymInt) and size.node.expr.free_symbols <= known.keys()
    }


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
