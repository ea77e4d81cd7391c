"""Functionalising most exported graphs by rewriting them, where torch would trace them anew."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torch2trt.frontend.memory import (
    CASTING,
    CHECKS,
    RESHAPING,
    SAME,
    SCATTERS,
    Memory,
    at_example,
    scattered,
    whole,
    writes,
)
from torch2trt.frontend.size_nodes import SizeNodes
from torch2trt.graph.contract import is_functional
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.sizes import to_shape

aten = torch.ops.aten

Keep = Callable[[Any], bool]

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default

# What asks a tensor for a size; how it lies in memory changes when writes are taken out.
_SIZES = frozenset({aten.sym_size.int, aten.sym_numel.default})


def functionalize(exported: ExportedProgram, keep: Keep) -> bool:
    """Bring an exported graph into the form that ``run_decompositions`` would, if that is simple.

    Tracing a graph once more takes longer than exporting it. Of graphs with no writing but into what the graph itself
    has made and reads as nothing else, and of operators that are kept, that is not needed: operators that write become
    those that do not, and the composite ones that yield views become plain ones. Sizes may be dynamic: nothing is
    assumed of them here that the trace did not assume. They may depend on data where nothing is written into.

    Args:
        keep: says for an operator whether it stays as it is.

    Returns:
        Whether it was done; the graph is changed in place then, and as it was otherwise.
    """
    graph = exported.graph_module.graph
    rewriter = _Rewriter(graph, keep)
    if not all(map(rewriter.plan, graph.nodes)):
        return False
    rewriter.apply()
    return True


class _Rewriter:
    def __init__(self, graph: fx.Graph, keep: Keep) -> None:
        self._graph = graph
        self._keep = keep
        self._keep_scatters = all(map(keep, SCATTERS.values()))
        self._writes = any(map(writes, graph.nodes))
        self._memory = Memory(graph)
        self._sizes = SizeNodes(graph)
        self._steps: list[Callable[[], None]] = []

    def apply(self) -> None:
        """Do what was planned."""
        for step in self._steps:
            step()

    def plan(self, node: fx.Node) -> bool:
        """Whether a node can stay, or note what becomes of it."""
        if node.op in ("placeholder", "output"):
            return _is_plain(node)
        if node.op != "call_function":
            return False
        target = node.target
        if _is_number(node):
            self._sizes.note(node)
            return target in _SIZES if isinstance(target, torch._ops.OpOverload) else is_functional(target)
        if target is operator.getitem or target in CHECKS:
            return True
        if not isinstance(target, torch._ops.OpOverload) or not _is_plain(node):
            return False
        if target._schema.is_mutable:
            return self._plan_writing(node, target)
        if target is aten.batch_norm.default:
            return self._plan_batch_norm(node)
        if target in RESHAPING:
            return self._plan_reshape(node)
        if target in CASTING or target in SAME:
            return self._plan_cast(node)
        if target is aten.expand_as.default:
            return self._plan_as(node, aten.expand.default)
        if target is aten.chunk.default:
            return self._plan_chunk(node)
        if target is aten.diff.default and not self._keep(target):
            return self._plan_diff(node)
        # What yields views of its arguments and is composite, torch takes apart; here, what is not kept is later.
        viewing = any(argument.alias_info is not None for argument in target._schema.arguments)
        return not (viewing and is_composite(target)) or not (self._writes or self._keep(target))

    def _plan_writing(self, node: fx.Node, target: torch._ops.OpOverload) -> bool:
        functional = _functional(target)
        if functional is None:
            return False
        written = node.args[0]
        if not isinstance(written, fx.Node):
            return False
        depth = 0
        if not self._memory.is_free(node, written):
            # Where what it is a part of is read later, that is another tensor then.
            depth, source = whole(written)
            if not depth or not self._keep_scatters or not self._memory.is_free(node, source):
                return False
        if not _yields_the_same(functional, node):
            return False

        def step() -> None:
            node.target = functional
            place = self._memory.place[node]
            # What it was when this was planned may have been replaced.
            now, following = scattered(node.args[0], node, depth)
            now.replace_all_uses_with(following, delete_user_cb=lambda user: self._memory.place.get(user, -1) > place)

        self._steps.append(step)
        return True

    def _plan_batch_norm(self, node: fx.Node) -> bool:
        bound = bind(node)
        mean, variance = bound["running_mean"], bound["running_var"]
        if bound["training"] or not isinstance(mean, fx.Node) or not isinstance(variance, fx.Node):
            return False
        if not self._keep(_BATCH_NORM):
            return False

        def step() -> None:
            # What its arguments were when this was planned may have been replaced.
            bound, own = bind(node), node.meta["val"]
            names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
            with self._graph.inserting_before(node):
                whole = self._graph.call_function(_BATCH_NORM, tuple(bound[name] for name in names))
                whole.meta = {**node.meta, "val": (own, own.new_empty(0), own.new_empty(0))}
                item = self._graph.call_function(operator.getitem, (whole, 0))
                item.meta = dict(node.meta)
            self._replace(node, item)

        self._steps.append(step)
        return True

    def _plan_reshape(self, node: fx.Node) -> bool:
        if node.target is not aten.reshape.default or not _is_symbolic(node):
            return self._plan_as(node, aten.reshape.default)

        def step() -> None:
            # It says itself how sizes that are not known are computed.
            bound, own = bind(node), to_shape(node.meta["val"].shape)
            shape = [size if isinstance(size, int) else asked for size, asked in zip(own, bound["shape"], strict=True)]
            node.args, node.kwargs = (bound["input"], shape), {}

        self._steps.append(step)
        return self._keep(node.target)

    def _plan_as(self, node: fx.Node, target: Any) -> bool:
        """Another operator, of a tensor and the shape of the result, in a node's place, if it is kept."""
        shape = self._sizes.shape(node)
        if shape is None:
            return False

        def step() -> None:
            node.args, node.kwargs = (node.args[0], [size(node) for size in shape]), {}
            node.target = target

        self._steps.append(step)
        return self._keep(target)

    def _plan_chunk(self, node: fx.Node) -> bool:
        bound = bind(node)
        size = bound["input"].meta["val"].shape[bound["dim"]]
        if not isinstance(size, int) or not size:
            return False

        def step() -> None:
            node.target, node.kwargs = aten.split.Tensor, {}
            node.args = (node.args[0], -(-size // bound["chunks"]), bound["dim"])

        self._steps.append(step)
        return self._keep(aten.split.Tensor)

    def _plan_diff(self, node: fx.Node) -> bool:
        bound = bind(node)
        dim, dtype = bound["dim"], node.meta["val"].dtype
        if any(map(_is_symbolic, (node, *node.all_input_nodes))):
            return False
        if bound["n"] != 1 or dtype is torch.bool or not bound["input"].meta["val"].dim():
            return False
        if not all(map(self._keep, (aten.cat.default, aten.slice.Tensor, aten.sub.Tensor))):
            return False

        def step() -> None:
            bound = bind(node)
            parts = [bound[name] for name in ("prepend", "input", "append") if bound[name] is not None]
            with self._graph.inserting_before(node):
                source = call(self._graph, aten.cat.default, parts, dim, like=node) if len(parts) > 1 else parts[0]
                size = source.meta["val"].shape[dim]
                before = call(self._graph, aten.slice.Tensor, source, dim, 0, size - 1, like=node)
                after = call(self._graph, aten.slice.Tensor, source, dim, 1, size, like=node)
                self._replace(node, call(self._graph, aten.sub.Tensor, after, before, like=node))

        self._steps.append(step)
        return True

    def _plan_cast(self, node: fx.Node) -> bool:
        bound = bind(node)
        source = bound["input"]
        if not isinstance(source, fx.Node) or bound.get("train"):
            return False
        if node.target in CASTING and bound.get("memory_format") is not None:
            return False
        before, after = source.meta["val"], node.meta["val"]
        if before.device != after.device:
            return False
        if before.dtype == after.dtype and to_shape(before.stride()) == to_shape(after.stride()):
            self._steps.append(lambda: self._replace(node, node.args[0]))
            return True
        if node.target in SAME:
            return self._keep(node.target)
        # Where only the layout is another, it is the result's alone to tell.
        if before.dtype == after.dtype or not self._keep(aten._to_copy.default):
            return False

        def step() -> None:
            node.args, node.kwargs = (node.args[0],), {"dtype": after.dtype}
            node.target = aten._to_copy.default

        self._steps.append(step)
        return True

    def _replace(self, node: fx.Node, other: Any) -> None:
        node.replace_all_uses_with(other)
        self._graph.erase_node(node)


def _yields_the_same(functional: Any, node: fx.Node) -> bool:
    """Whether an operator yields a tensor of the dtype, shape and device of what a call writes."""
    examples = {argument: at_example(argument.meta["val"]) for argument in node.all_input_nodes}
    own = at_example(node.meta["val"])
    # What makes a view of it anew, as transpose_ does, may make another one of other sizes.
    views = functional._schema.returns[0].alias_info is not None and _is_symbolic(node)
    if own is None or views or any(example is None for example in examples.values()):
        return False
    args, kwargs = fx.map_arg((node.args, node.kwargs), examples.__getitem__)
    with own.fake_mode:
        value = functional(*args, **kwargs)
    return bool((value.dtype, value.shape, value.device) == (own.dtype, own.shape, own.device))


def _values(node: fx.Node) -> list[Any]:
    value = node.meta.get("val")
    return [*value] if isinstance(value, list | tuple) else [value]


def _is_plain(node: fx.Node) -> bool:
    """Whether all that it yields are tensors, or nothing."""
    return all(
        value is None
        or isinstance(value, torch.Tensor)
        or (node.op == "placeholder" and isinstance(value, int | float | bool | str))
        for value in _values(node)
    )


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)


def _is_symbolic(node: fx.Node) -> bool:
    """Whether it yields a tensor with a size that is not known."""
    return any(isinstance(value, torch.Tensor) and value._has_symbolic_sizes_strides for value in _values(node))


def is_composite(target: torch._ops.OpOverload) -> bool:
    """Whether an operator is made of others, for every backend and its gradients."""
    return target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _functional(target: torch._ops.OpOverload) -> Any:
    """The operator that yields what another writes into its first argument; None where there is no such."""
    schema = target._schema
    written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if [argument.name for argument in written] != [schema.arguments[0].name]:
        return None
    namespace, _, name = schema.name.partition("::")
    if not name.endswith("_") or len(schema.returns) != 1:
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    overload = schema.overload_name or "default"
    found = getattr(packet, overload, None) if packet is not None else None
    if found is None or found._schema.is_mutable:
        return None
    # Some call the first one self, and others input.
    types, own = ([str(each.type) for each in each_of.arguments] for each_of in (found._schema, schema))
    return found if types == own else None
